"""Prompts, messages, tools and parameters: what goes into a generation, as Python values.

They know nothing of gRPC or protobuf: `requests` translates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict

Role = Literal["system", "user", "assistant", "tool"]


Json: TypeAlias = Mapping[str, object] | str
"""A JSON object, as a mapping or as its text; keys keep their order and integers their digits."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that an earlier assistant's message made."""

    id: str | None
    name: str
    arguments: Json | None = None


ToolCallLike: TypeAlias = ToolCall | Mapping[str, object]
"""A call, or a mapping in the shape of OpenAI's clients: {"id": …, "type": "function", "function": {"name": …,
"arguments": JSON text or a mapping}}."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation. Content of None is none, for a message that calls tools; "" is empty content."""

    role: Role
    content: str | None = None
    name: str | None = None
    tool_calls: Sequence[ToolCallLike] = ()
    tool_call_id: str | None = None
    reasoning_content: str | None = None


MessageLike: TypeAlias = Message | Mapping[str, object]
"""A message, or a mapping in the shape of OpenAI's clients, with the keys that `Message` has.

Its content is text, None, or a list of {"type": "text", "text": …}, which are joined by newlines. The role `developer`
is `system`. A key that is not known, or asks for what Pagewire does not have, is refused with its path.
"""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the model may call; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str | None = None
    parameters: Json | None = None


ToolLike: TypeAlias = Tool | Mapping[str, object]
"""A tool, or a mapping in the shape of OpenAI's clients: {"type": "function", "function": {"name": …, "description": …,
"parameters": …}}."""


@dataclass(frozen=True, slots=True)
class Tag:
    """A constrained part of free text, from `begin` to `end`. One of json_schema, regex, grammar and json_object is
    set."""

    begin: str
    json_schema: Json | None = None
    regex: str | None = None
    grammar: str | None = None
    json_object: bool | None = None
    end: str = ""


TagLike: TypeAlias = Tag | Mapping[str, object]
"""A tag, or a mapping with the keys that `Tag` has."""


ReasoningFormat = Literal["none", "think", "mistral"]
ToolCallFormat = Literal["none", "qwen3", "qwen3_coder", "llama3", "mistral", "mistral_args"]


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a model writes its reasoning and its calls; None: as its template shows."""

    reasoning: ReasoningFormat | None = None
    tool_calls: ToolCallFormat | None = None


@dataclass(frozen=True, slots=True)
class NamedTool:
    """The choice of one tool, which the model must call."""

    name: str


ToolChoiceLike: TypeAlias = Literal["auto", "none", "required"] | NamedTool | Mapping[str, object]
"""Whether the model calls tools; a mapping is {"type": "function", "function": {"name": …}}, as OpenAI's clients have
it."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, and what bears on its answer besides the messages."""

    messages: Sequence[MessageLike]
    tools: Sequence[ToolLike] = ()
    template_arguments: Json | None = None
    add_generation_prompt: bool | None = None
    tool_choice: ToolChoiceLike | None = None
    parallel_tool_calls: bool | None = None
    max_reasoning_tokens: int | None = None
    continue_final_message: bool | None = None
    """Go on with the last message, the assistant's."""
    format: ChatFormat | None = None


Prompt: TypeAlias = str | Sequence[int] | Sequence[MessageLike] | Chat
"""Text, token ids, or a conversation."""

Prompts: TypeAlias = (
    list[str]
    | tuple[str, ...]
    | Sequence[Chat]
    | list[list[int]]
    | list[tuple[int, ...]]
    | list[list[Message]]
    | list[list[MessageLike]]
    | list[Prompt]
)
"""Several prompts. Text alone is a sequence of texts too, so several texts are a list or a tuple."""


class Parameters(TypedDict, total=False):
    """Keyword arguments of one generation. Left out or None: as the contract says for an unset field."""

    model: str | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    allowed_token_ids: Sequence[int] | None
    banned_token_ids: Sequence[int] | None
    bad_words: Sequence[str] | None
    """Texts that the output must not write."""
    seed: int | None
    max_tokens: int | None
    min_tokens: int | None
    stop: str | Sequence[str] | None
    """Texts that end an output; one may stand alone."""
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    include_stop: bool | None
    return_text: bool | None
    return_token_ids: bool | None
    logprobs: bool | None
    num_candidates: int | None
    logprob_token_ids: Sequence[int] | None
    """Ids whose log-probabilities come with every token."""
    processed_logprobs: bool | None
    """Log-probabilities after bias, penalties and bans instead of before."""
    return_parts: bool | None
    """Tell a chat's content, reasoning and calls apart; as if true."""
    prompt_logprobs: bool | None
    num_prompt_candidates: int | None
    skip_special_tokens: bool | None
    n: int | None
    priority: int | None
    cache_salt: str | None
    json_schema: str | Mapping[str, object] | None
    """A JSON schema, as text or as the object. At most one of json_schema, json_object, regex, grammar, choice and
    structural_tags."""
    json_object: bool | None
    """Any JSON object."""
    regex: str | None
    grammar: str | None
    """In Lark, or in EBNF as llama.cpp has it."""
    choice: Sequence[str] | None
    structural_tags: Sequence[TagLike] | None
    """Parts of free text that are constrained."""
    tag_triggers: Sequence[str] | None
    """Texts from which on one of the structural tags follows that begin with it; none: every tag's own begin."""
    max_queue_time_s: float | None
    request_id: str | None
