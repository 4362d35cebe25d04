"""From a validated prompt to token ids: chat template, tokenizer, and the checks that need the ids.

It knows neither calls nor the engine.
"""

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.request.fields import check_token_ids
from pagewire.scheduler_svc.frontend.request.limits import ModelLimits
from pagewire.scheduler_svc.frontend.request.prompt import ChatPrompt, IdsPrompt, Prompt, TextPrompt
from pagewire.scheduler_svc.frontend.text.chat_template import ChatTemplate, TemplateRefusedError
from pagewire.scheduler_svc.frontend.text.text_bound import TextBound
from pagewire.scheduler_svc.frontend.text.tokenizer import LONG_CHARACTERS, TextTokenizer


class PromptReader:
    """The model's text side, as far as prompts need it. Both parts are none for a model of token ids alone."""

    def __init__(self, tokenizer: TextTokenizer | None, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._template = template

    async def read(
        self, prompt: Prompt, path: str, limits: ModelLimits, client: str, *, add_special_tokens: bool = True
    ) -> tuple[list[int], str | None]:
        """The ids, and the text they were made of where there was one. `client` is whom the work is done for: those
        that wait for it are served in turn. Raises InvalidArgument, ResourceExhausted."""
        match prompt:
            case IdsPrompt():
                return list(prompt.ids), None
            case TextPrompt():
                text = prompt.text
            case ChatPrompt():
                text = await self._render(prompt, path, client)
                # The template has written the special tokens itself.
                add_special_tokens = False
        if self._tokenizer is None:
            raise InvalidArgument(path, "is set; the model has no tokenizer")
        _check_text_length(self._tokenizer.bound, text, path, limits)
        ids = await self._tokenizer.encode(text, add_special_tokens=add_special_tokens, client=client)
        check_token_ids(ids, path, limits.vocab_size)
        return ids, text

    async def _render(self, prompt: ChatPrompt, path: str, client: str) -> str:
        if self._template is None:
            raise InvalidArgument(path, "is set; the model has no chat template")
        try:
            return await self._template.render(prompt.variables, client, has_tools=prompt.has_tools)
        except TemplateRefusedError as error:
            raise InvalidArgument(path, f"cannot be rendered: {error}") from error


def _check_text_length(bound: TextBound, text: str, path: str, limits: ModelLimits) -> None:
    """Raise InvalidArgument where a long text cannot fit, however few tokens it is. A short one is tokenized all the
    same, so that whoever sent it learns its number of tokens."""
    if len(text) < LONG_CHARACTERS:
        return
    num_tokens = limits.max_tokens - 1
    excess = bound.excess(text, num_tokens)
    if excess is not None:
        size, limit = excess
        raise InvalidArgument(
            path,
            f"gives {size} bytes of text, which leaves no room for output: {num_tokens} tokens, the most that a prompt "
            f"may be, stand for at most {limit} bytes",
        )
