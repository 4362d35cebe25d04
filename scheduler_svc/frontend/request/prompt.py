"""Prompts: their kinds, checked as far as they can be before they are token ids, and then as token ids.

It knows the contract's limits and the model's, and neither calls nor the engine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.limits import ModelLimits, check_token_ids
from pagewire.scheduler_svc.frontend.request.chat import template_variables
from pagewire.scheduler_svc.frontend.request.chat_turn import ChatChoices, chat_choices
from pagewire.scheduler_svc.frontend.request.continuation import cut_continuation
from pagewire.scheduler_svc.frontend.text.chat_template import ChatTemplate, TemplateRefusedError
from pagewire.scheduler_svc.frontend.text.parameter_types import ParameterTypes
from pagewire.scheduler_svc.frontend.text.template_process import Rendered
from pagewire.scheduler_svc.frontend.text.template_variables import Variables
from pagewire.scheduler_svc.frontend.text.text_bound import TextBound
from pagewire.scheduler_svc.frontend.text.tokenizer import LONG_CHARACTERS, TextTokenizer
from pagewire.v1 import generation_pb2 as pb
from pagewire.wire.model import ModelSpec


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text to be tokenized."""

    text: str


@dataclass(frozen=True, slots=True)
class IdsPrompt:
    """Token ids, checked against the vocabulary."""

    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Variables for the chat template, whose JSON is not read yet."""

    variables: Variables
    has_tools: bool
    is_continuation: bool
    """The answer goes on with the last message."""
    choices: ChatChoices


Prompt = TextPrompt | IdsPrompt | ChatPrompt


@dataclass(frozen=True, slots=True)
class ReadPrompt:
    """A prompt as token ids."""

    ids: list[int]
    text: str | None = None
    """What they were made of; none where they were given."""
    parameter_types: Mapping[str, ParameterTypes] = field(default_factory=dict)
    """By tool, where they were asked for."""


def validate_prompt(prompt: pb.Prompt, path: str, spec: ModelSpec, limits: ModelLimits) -> tuple[Prompt, str]:
    """Check a prompt; returns it with the path of the field that gives it. Raises InvalidArgument."""
    match prompt.WhichOneof("kind"):
        case "text":
            path = f"{path}.text"
            if spec.tokenizer_file is None:
                raise InvalidArgument(path, f"is set; model {spec.name} has no tokenizer and takes token_ids alone")
            return TextPrompt(prompt.text), path
        case "token_ids":
            path = f"{path}.token_ids.ids"
            # The length first: it bounds the work on the rest.
            check_prompt_length(len(prompt.token_ids.ids), path, limits)
            ids = list(prompt.token_ids.ids)
            check_token_ids(ids, path, limits.vocab_size)
            return IdsPrompt(ids), path
        case "chat":
            path = f"{path}.chat"
            if spec.tokenizer_file is None or (spec.chat_template is None and spec.tool_use_template is None):
                raise InvalidArgument(path, f"is set; model {spec.name} has no chat template")
            chat = prompt.chat
            variables = template_variables(chat, spec.special_tokens, path)
            choices = chat_choices(chat, spec, path)
            if choices.wants_parameter_types:
                variables = msgspec.structs.replace(variables, wants_parameter_types=True)
            has_tools = bool(variables.values["tools"])
            if spec.chat_template is None and not has_tools:
                raise InvalidArgument(
                    f"{path}.tools", f"gives none; model {spec.name} has a chat template for tools alone"
                )
            return ChatPrompt(variables, has_tools, chat.continue_final_message, choices), path
        case _:
            raise InvalidArgument(path, "is not set; it needs one of text, token_ids and chat")


def check_prompt_length(num_tokens: int, path: str, limits: ModelLimits) -> None:
    """Raise InvalidArgument unless the prompt has a token and leaves room for one more."""
    if num_tokens == 0:
        raise InvalidArgument(path, "gives no tokens; a prompt has at least one")
    if num_tokens >= limits.max_tokens:
        raise InvalidArgument(
            path,
            f"gives {num_tokens} tokens, which leaves no room for output: prompt and output together may be "
            f"{limits.max_tokens} tokens",
        )


class PromptReader:
    """The model's text side, as far as prompts need it. Both parts are none for a model of token ids alone."""

    def __init__(self, tokenizer: TextTokenizer | None, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._template = template

    async def read(
        self, prompt: Prompt, path: str, limits: ModelLimits, client: str, *, add_special_tokens: bool = True
    ) -> ReadPrompt:
        """As token ids. `client` is whom the work is done for: those
        that wait for it are served in turn. Raises InvalidArgument, ResourceExhausted."""
        types: Mapping[str, ParameterTypes] = {}
        match prompt:
            case IdsPrompt():
                return ReadPrompt(list(prompt.ids))
            case TextPrompt():
                text = prompt.text
            case ChatPrompt():
                rendered = await self._render(prompt, path, client)
                text, types = rendered.text, rendered.parameter_types
                if prompt.is_continuation:
                    text = cut_continuation(text, path)
                # The template has written the special tokens itself.
                add_special_tokens = False
        if self._tokenizer is None:
            raise InvalidArgument(path, "is set; the model has no tokenizer")
        _check_text_length(self._tokenizer.bound, text, path, limits)
        ids = await self._tokenizer.encode(text, add_special_tokens=add_special_tokens, client=client)
        check_token_ids(ids, path, limits.vocab_size)
        return ReadPrompt(ids, text, types)

    async def _render(self, prompt: ChatPrompt, path: str, client: str) -> Rendered:
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
