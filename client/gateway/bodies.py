"""Bodies: what a request to OpenAI's endpoints may hold, typed; a key that is not here is refused by name.

Keys that OpenAI does not have are named as vLLM's server has them. It knows what a body looks like, not what it means.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeVar

import msgspec

from pagewire.client.errors import InvalidRequest
from pagewire.client.json_text import NotJson, from_json

B = TypeVar("B")

_NAMED = re.compile(r"(?:unknown|required) field `(.*)`")


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """How a stream ends."""

    include_usage: bool = False


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True):
    """A schema that an answer is of."""

    name: str
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None
    """An answer is always held to its schema."""


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    """What an answer is."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatFormatBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How the model writes reasoning and calls, where its template does not show it; see `prompts.ChatFormat`."""

    reasoning: str | None = None
    tool_calls: str | None = None


class Common(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What both endpoints take."""

    model: str
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    user: str | None = None
    """Who asks, for the caller's own records: it changes nothing."""
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    priority: int | None = None
    cache_salt: str | None = None
    response_format: ResponseFormat | None = None


class ChatBody(Common, kw_only=True, forbid_unknown_fields=True):
    """Of /v1/chat/completions."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    max_reasoning_tokens: int | None = None
    chat_format: ChatFormatBody | None = None


class CompletionBody(Common, kw_only=True, forbid_unknown_fields=True):
    """Of /v1/completions."""

    prompt: str | list[str | int | list[int]]
    """A text, token ids, or several of one of these."""
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


def read(text: bytes, kind: type[B]) -> B:
    """A body. Raises InvalidRequest with the path of what is wrong."""
    try:
        value = from_json(text)
    except NotJson as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        field = path.rstrip("`").lstrip(".")
        said = f"{field}: {message}" if field else message
        if named := _NAMED.search(message):  # the key that is not known, or is missing
            field = f"{field}.{named[1]}" if field else named[1]
        raise InvalidRequest(said, field=field) from error
