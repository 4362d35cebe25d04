"""Requests: a body of OpenAI's becomes a prompt and parameters of this client.

What the service cannot do is refused by the key that asks for it. It knows neither HTTP nor answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import msgspec

from pagewire.client.errors import InvalidRequest
from pagewire.client.gateway.bodies import ChatBody, ChatFormatBody, Common, CompletionBody, ResponseFormat
from pagewire.client.prompts import (
    Chat,
    ChatFormat,
    MessageLike,
    Parameters,
    Prompt,
    ReasoningFormat,
    ToolCallFormat,
    ToolChoiceLike,
    ToolLike,
)

_SAME_NAMES = tuple(each.name for each in msgspec.structs.fields(Common) if each.name in Parameters.__annotations__)
"""Keys that a body and the client's parameters have alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked of the service, and how the answer is to be written."""

    prompts: list[Prompt]
    """Each answered by itself; several only of /v1/completions."""
    parameters: Parameters
    is_stream: bool
    includes_usage: bool
    """Of a stream: whether a last chunk says what it cost."""
    has_logprobs: bool


def of_chat(body: ChatBody) -> Wanted:
    """Raises InvalidRequest."""
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise InvalidRequest("max_completion_tokens is set beside max_tokens", field="max_completion_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs is set, and logprobs is not true", field="top_logprobs")
    parameters = _parameters(body)
    parameters["max_tokens"] = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    parameters["return_token_ids"] = bool(body.stream)  # by which a broken stream is mended
    parameters["logprobs"] = body.logprobs
    parameters["num_candidates"] = body.top_logprobs
    chat = Chat(
        cast(list[MessageLike], body.messages),
        tools=cast(list[ToolLike], body.tools or []),
        template_arguments=body.chat_template_kwargs,
        add_generation_prompt=body.add_generation_prompt,
        tool_choice=cast(ToolChoiceLike | None, body.tool_choice),
        parallel_tool_calls=None if not body.tools else body.parallel_tool_calls,
        max_reasoning_tokens=body.max_reasoning_tokens,
        continue_final_message=body.continue_final_message,
        format=_format(body.chat_format),
    )
    return _wanted(body, [chat], parameters, has_logprobs=bool(body.logprobs))


def of_completion(body: CompletionBody) -> Wanted:
    """Raises InvalidRequest."""
    for name in ("echo", "suffix"):
        if getattr(body, name):
            raise InvalidRequest(f"{name} is not supported", field=name)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise InvalidRequest("best_of is not supported; n answers are given", field="best_of")
    several = _prompts(body.prompt)
    if body.stream and len(several) > 1:
        raise InvalidRequest("prompt has several prompts, which cannot be streamed as one", field="prompt")
    parameters = _parameters(body)
    # As OpenAI has it: 16 where nothing is said.
    parameters["max_tokens"] = 16 if body.max_tokens is None else body.max_tokens
    parameters["logprobs"] = body.logprobs is not None
    parameters["num_candidates"] = body.logprobs
    return _wanted(body, several, parameters, has_logprobs=body.logprobs is not None)


def _prompts(given: str | list[Any]) -> list[Any]:
    """One prompt, or several of one kind."""
    if isinstance(given, str):
        return [given]
    kinds = {type(each) for each in given}
    if len(kinds) != 1:
        raise InvalidRequest("prompt must be text, token ids, or several of one of these", field="prompt")
    return [given] if kinds == {int} else given


def _wanted(body: Common, prompts: list[Any], parameters: Parameters, *, has_logprobs: bool) -> Wanted:
    if not body.model:
        raise InvalidRequest("model is empty; GET /v1/models names what is served", field="model")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options is set, and stream is not true", field="stream_options")
    return Wanted(
        prompts=prompts,
        parameters=parameters,
        is_stream=bool(body.stream),
        includes_usage=body.stream_options is not None and body.stream_options.include_usage,
        has_logprobs=has_logprobs,
    )


def _parameters(body: Common) -> Parameters:
    parameters: dict[str, Any] = {name: getattr(body, name) for name in _SAME_NAMES}
    parameters["include_stop"] = body.include_stop_str_in_output
    if body.top_k == -1:  # as vLLM's server has it: all
        parameters["top_k"] = 0
    if body.logit_bias is not None:
        parameters["logit_bias"] = {_token_id(key): value for key, value in body.logit_bias.items()}
    return cast(Parameters, parameters | _constraint(body.response_format))


def _format(given: ChatFormatBody | None) -> ChatFormat | None:
    if given is None:
        return None
    return ChatFormat(cast(ReasoningFormat | None, given.reasoning), cast(ToolCallFormat | None, given.tool_calls))


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdigit()) or (key[0] == "0" and key != "0"):
        raise InvalidRequest(f"logit_bias has the key {key!r}; its keys are token ids", field="logit_bias")
    return int(key)


def _constraint(wanted: ResponseFormat | None) -> dict[str, Any]:
    if wanted is None:
        return {}
    if wanted.type != "json_schema" and wanted.json_schema is not None:
        raise InvalidRequest(
            f"response_format.json_schema is set; type is {wanted.type}", field="response_format.json_schema"
        )
    if wanted.type == "text":
        return {}
    if wanted.type == "json_object":
        return {"json_object": True}
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise InvalidRequest("response_format.json_schema.schema is missing", field="response_format.json_schema")
    return {"json_schema": wanted.json_schema.schema}
