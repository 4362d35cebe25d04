"""From `pagewire.v1.Chat` to the variables of a chat template, validated.

It knows the shapes that templates expect (Hugging Face's: a tool is `{"type": "function", "function": {…}}`) and the
contract's limits; it renders nothing. Invariants: what comes out is plain data, and equal requests give equal data; the
work is bounded, because it is done on the event loop that every stream of the process shares.
"""

import math
from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

from pagewire.scheduler_svc.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.fields import quote
from pagewire.scheduler_svc.frontend.limits import MAX_CHAT_MESSAGES, MAX_CHAT_PARTS
from pagewire.v1 import generation_pb2 as pb

_ROLES = {
    pb.CHAT_ROLE_SYSTEM: "system",
    pb.CHAT_ROLE_USER: "user",
    pb.CHAT_ROLE_ASSISTANT: "assistant",
    pb.CHAT_ROLE_TOOL: "tool",
}
_MAX_EXACT_DOUBLE = 2.0**53
_MAX_WRITTEN_CHARACTERS = 80
_SERVER_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})


def template_variables(chat: pb.Chat, special_tokens: Mapping[str, str], path: str) -> dict[str, Any]:
    """Everything that the template sees. `path` is the path of `chat` in its request. Raises InvalidArgument."""
    if not 1 <= len(chat.messages) <= MAX_CHAT_MESSAGES:
        raise InvalidArgument(f"{path}.messages", f"has {len(chat.messages)} messages; 1 to {MAX_CHAT_MESSAGES} may be")
    parts = _Parts(path)
    arguments = parts.struct(chat.template_arguments, f"{path}.template_arguments")
    for name in arguments:
        if name in _SERVER_VARIABLES or name in special_tokens:
            raise InvalidArgument(f"{path}.template_arguments", f"sets {quote(name)}, which the server sets itself")
    tools = [parts.tool(tool, f"{path}.tools[{i}]") for i, tool in enumerate(chat.tools)]
    return arguments | {
        **special_tokens,
        "messages": [_message(message, f"{path}.messages[{i}]", parts) for i, message in enumerate(chat.messages)],
        "tools": tools or None,
        "add_generation_prompt": chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True,
    }


def _message(message: pb.ChatMessage, path: str, parts: "_Parts") -> dict[str, Any]:
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidArgument(f"{path}.role", f"is {message.role}, which is no role")
    if not message.content and not message.tool_calls:
        raise InvalidArgument(f"{path}.content", "is empty; only a message with tool_calls may leave it so")
    rendered: dict[str, Any] = {"role": role, "content": message.content}
    if message.HasField("name"):
        rendered["name"] = message.name
    if message.HasField("reasoning_content"):
        if message.role != pb.CHAT_ROLE_ASSISTANT:
            raise InvalidArgument(
                f"{path}.reasoning_content", f"is set in a message of role {role}; only assistant's has it"
            )
        rendered["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        if message.role != pb.CHAT_ROLE_ASSISTANT:
            raise InvalidArgument(f"{path}.tool_calls", f"is set in a message of role {role}; only assistant's has it")
        rendered["tool_calls"] = [
            parts.call(call, f"{path}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls)
        ]
    if message.HasField("tool_call_id"):
        if message.role != pb.CHAT_ROLE_TOOL:
            raise InvalidArgument(f"{path}.tool_call_id", f"is set in a message of role {role}; only tool's has it")
        rendered["tool_call_id"] = message.tool_call_id
    return rendered


_Path = tuple["_Path | str", str]
"""Where a value stands: its parent's path and its own step. Written out for an error alone: a caller can make names of
megabytes, and copying them once for each value below would hold the event loop for minutes."""


class _Parts:
    """Converts one chat's tools, tool calls and values of structs, and counts them: a few microseconds each."""

    def __init__(self, path: str) -> None:
        """`path` is the chat's."""
        self._path = path
        self._num_left = MAX_CHAT_PARTS

    def _count(self, num_parts: int = 1) -> None:
        self._num_left -= num_parts
        if self._num_left < 0:
            raise InvalidArgument(
                self._path, f"has more than {MAX_CHAT_PARTS} tools, tool calls and values in their structs"
            )

    def call(self, call: pb.ToolCall, path: str) -> dict[str, Any]:
        """A call that an assistant made."""
        self._count()
        if not call.name:
            raise InvalidArgument(f"{path}.name", "is empty; a call names its tool")
        function = {"name": call.name, "arguments": self.struct(call.arguments, f"{path}.arguments")}
        return {"type": "function", "id": call.id, "function": function}

    def tool(self, tool: pb.Tool, path: str) -> dict[str, Any]:
        """A tool that the model may call."""
        self._count()
        if not tool.name:
            raise InvalidArgument(f"{path}.name", "is empty; a tool has a name")
        function: dict[str, Any] = {"name": tool.name}
        if tool.HasField("description"):
            function["description"] = tool.description
        if tool.HasField("parameters"):
            function["parameters"] = self.struct(tool.parameters, f"{path}.parameters")
        return {"type": "function", "function": function}

    def struct(self, struct: Struct, path: "_Path | str") -> dict[str, Any]:
        """A map of plain data."""
        self._count(len(struct.fields))
        # A protobuf map has no order; templates print these, and equal requests must give equal prompts.
        return {name: self._value(struct.fields[name], (path, name)) for name in sorted(struct.fields)}

    def _value(self, value: Value, path: _Path) -> Any:
        match value.WhichOneof("kind"):
            case "string_value":
                return value.string_value
            case "bool_value":
                return value.bool_value
            case "struct_value":
                return self.struct(value.struct_value, path)
            case "list_value":
                self._count(len(value.list_value.values))
                return [self._value(item, (path, f"[{i}]")) for i, item in enumerate(value.list_value.values)]
            case "number_value":
                return _number(value.number_value, path)
            case _:
                return None


def _written(path: "_Path | str") -> str:
    if isinstance(path, str):
        return path
    parent, step = path
    step = step if len(step) <= _MAX_WRITTEN_CHARACTERS else f"{step[:_MAX_WRITTEN_CHARACTERS]}…"
    return _written(parent) + (step if step.startswith("[") else f".{step}")


def _number(number: float, path: _Path) -> int | float:
    """A Struct has doubles alone; an integral one must print as 5, not as 5.0, in a JSON schema."""
    if not math.isfinite(number):
        raise InvalidArgument(_written(path), f"is {number}; it must be finite")
    return int(number) if number.is_integer() and abs(number) <= _MAX_EXACT_DOUBLE else number
