"""From a validated prompt to token ids: chat template, tokenizer, and the checks that need the ids.

It knows neither calls nor the engine.
"""

from pagewire.scheduler_svc.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.chat_template import ChatTemplate, TemplateRefusedError
from pagewire.scheduler_svc.frontend.fields import check_token_ids
from pagewire.scheduler_svc.frontend.limits import ModelLimits
from pagewire.scheduler_svc.frontend.prompt import ChatPrompt, IdsPrompt, Prompt, TextPrompt
from pagewire.scheduler_svc.frontend.tokenizer import TextTokenizer


class PromptReader:
    """The model's text side, as far as prompts need it. Both parts are none for a model of token ids alone."""

    def __init__(self, tokenizer: TextTokenizer | None, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._template = template

    async def read(
        self, prompt: Prompt, path: str, limits: ModelLimits, *, add_special_tokens: bool = True
    ) -> tuple[list[int], str | None]:
        """The ids, and the text they were made of where there was one. Raises InvalidArgument, ResourceExhausted."""
        match prompt:
            case IdsPrompt():
                return list(prompt.ids), None
            case TextPrompt():
                text = prompt.text
            case ChatPrompt():
                text = await self._render(prompt, path)
                # The template has written the special tokens itself.
                add_special_tokens = False
        if self._tokenizer is None:
            raise InvalidArgument(path, "is set; the model has no tokenizer")
        ids = await self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        check_token_ids(ids, path, limits.vocab_size)
        return ids, text

    async def _render(self, prompt: ChatPrompt, path: str) -> str:
        if self._template is None:
            raise InvalidArgument(path, "is set; the model has no chat template")
        try:
            return await self._template.render(prompt.variables, has_tools=prompt.has_tools)
        except TemplateRefusedError as error:
            raise InvalidArgument(path, f"cannot be rendered: {error}") from error
