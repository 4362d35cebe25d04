"""The kinds of prompt, checked as far as they can be before they are token ids.

It knows the contract's limits and the model's, and neither template nor tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.request.chat import template_variables
from pagewire.scheduler_svc.frontend.request.fields import check_token_ids
from pagewire.scheduler_svc.frontend.request.limits import ModelLimits
from pagewire.scheduler_svc.frontend.request.template_variables import Variables
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


Prompt = TextPrompt | IdsPrompt | ChatPrompt


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
            if spec.chat_template is None and not prompt.chat.tools:
                raise InvalidArgument(
                    f"{path}.tools",
                    f"is empty; model {spec.name} has a chat template for tools alone",
                )
            variables = template_variables(prompt.chat, spec.special_tokens, path)
            return ChatPrompt(variables, has_tools=bool(prompt.chat.tools)), path
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
