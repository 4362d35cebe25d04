"""Chat formats: the contract's numbers and this client's names for how models write reasoning and calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from pagewire.client.errors import InvalidRequest, brief
from pagewire.client.prompts import ChatFormat, ReasoningFormat, ToolCallFormat
from pagewire.v1 import generation_pb2 as pb

_REASONING: Mapping[str, pb.ReasoningFormat] = {
    "none": pb.REASONING_FORMAT_NONE,
    "think": pb.REASONING_FORMAT_THINK,
    "mistral": pb.REASONING_FORMAT_MISTRAL,
}
_TOOL_CALLS: Mapping[str, pb.ToolCallFormat] = {
    "none": pb.TOOL_CALL_FORMAT_NONE,
    "qwen3": pb.TOOL_CALL_FORMAT_QWEN3,
    "qwen3_coder": pb.TOOL_CALL_FORMAT_QWEN3_CODER,
    "llama3": pb.TOOL_CALL_FORMAT_LLAMA3,
    "mistral": pb.TOOL_CALL_FORMAT_MISTRAL,
    "mistral_args": pb.TOOL_CALL_FORMAT_MISTRAL_ARGS,
}
REASONING_FORMATS = tuple(_REASONING)
TOOL_CALL_FORMATS = tuple(_TOOL_CALLS)


def format_message(given: ChatFormat, path: str) -> pb.ChatFormat:
    """As the contract has it. Raises InvalidRequest for what is none, and for a name that is not known."""
    if not isinstance(given, ChatFormat):
        raise InvalidRequest(f"{path} is {brief(given)}; it must be a ChatFormat", field=path)
    message = pb.ChatFormat()
    if given.reasoning is not None:
        _check(given.reasoning, REASONING_FORMATS, f"{path}.reasoning")
        message.reasoning = _REASONING[given.reasoning]
    if given.tool_calls is not None:
        _check(given.tool_calls, TOOL_CALL_FORMATS, f"{path}.tool_calls")
        message.tool_calls = _TOOL_CALLS[given.tool_calls]
    return message


def _check(name: str, known: tuple[str, ...], path: str) -> None:
    if name not in known:
        raise InvalidRequest(f"{path} is {brief(name)}; it must be one of {', '.join(known)}", field=path)


def format_value(message: pb.ChatFormat) -> ChatFormat:
    """As this client has it; a format that it does not know is None."""
    reasoning = next((name for name, number in _REASONING.items() if number == message.reasoning), None)
    tool_calls = next((name for name, number in _TOOL_CALLS.items() if number == message.tool_calls), None)
    return ChatFormat(cast(ReasoningFormat | None, reasoning), cast(ToolCallFormat | None, tool_calls))
