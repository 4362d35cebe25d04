"""OpenAI's shapes: messages, tools and tool calls as mappings, read into this client's own types.

What Pagewire does not have is refused with its path, as is a key that is misspelled; a key of OpenAI's own whose value
is None asks for nothing and may stand. Values of JSON are passed on as they are. It knows nothing of protobuf.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from pagewire.client.errors import InvalidRequest, brief
from pagewire.client.prompts import Message, Role, Tool, ToolCall, ToolCallLike

_MESSAGE_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"})
_ONLY_NONE = frozenset({"refusal", "annotations", "audio", "function_call", "strict"})
"""Keys of OpenAI's that ask for nothing where they are None, empty or False."""


def message(value: object, path: str) -> Message:
    """A message, or a mapping such as {"role": "user", "content": "hi"}. Raises InvalidRequest."""
    if isinstance(value, Message):
        return value
    entry = _mapping(value, path, "a Message", _MESSAGE_KEYS)
    if "role" not in entry:
        raise InvalidRequest(f"{path}.role is missing", field=f"{path}.role")
    role = _text(entry, "role", path)
    return Message(
        # OpenAI's newer name of the same thing; templates know system alone.
        role="system" if role == "developer" else cast(Role, role),
        content=_content(entry.get("content"), f"{path}.content"),
        name=_text(entry, "name", path),
        tool_calls=cast(Sequence[ToolCallLike], items(entry.get("tool_calls"), f"{path}.tool_calls")),
        tool_call_id=_text(entry, "tool_call_id", path),
        reasoning_content=_text(entry, "reasoning_content", path),
    )


def tool_call(value: object, path: str) -> ToolCall:
    """A call, or {"id": …, "type": "function", "function": {"name": …, "arguments": …}}. Raises InvalidRequest."""
    if isinstance(value, ToolCall):
        return value
    entry = _mapping(value, path, "a ToolCall", frozenset({"id", "type", "function"}))
    function = _function(entry, path, frozenset({"name", "arguments"}))
    # Whoever puts streamed calls together writes "" for a tool without parameters.
    arguments = _json(function.get("arguments"), f"{path}.function.arguments") or None
    return ToolCall(_text(entry, "id", path), _name(function, path), arguments)


def tool(value: object, path: str) -> Tool:
    """A tool, or {"type": "function", "function": {"name": …, "description": …, "parameters": …}}.

    Raises InvalidRequest, also for `strict`: calls that the model makes by itself are not held to a tool's schema.
    """
    if isinstance(value, Tool):
        return value
    entry = _mapping(value, path, "a Tool", frozenset({"type", "function"}))
    function = _function(entry, path, frozenset({"name", "description", "parameters"}))
    parameters = _json(function.get("parameters"), f"{path}.function.parameters")
    return Tool(_name(function, path), _text(function, "description", f"{path}.function"), parameters)


def chosen_tool(value: Mapping[str, object], path: str) -> str:
    """The name in {"type": "function", "function": {"name": …}}. Raises InvalidRequest."""
    entry = _mapping(value, path, "a mapping", frozenset({"type", "function"}))
    return _name(_function(entry, path, frozenset({"name"})), path)


def items(value: object, path: str) -> Sequence[object]:
    """What should be a sequence; None is an empty one. Raises InvalidRequest."""
    if value is None:
        return ()
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        raise InvalidRequest(f"{path} must be a sequence, not {brief(value)}", field=path)
    return value


def _function(entry: Mapping[str, object], path: str, keys: frozenset[str]) -> Mapping[str, object]:
    kind = entry.get("type", "function")
    if kind != "function":
        raise InvalidRequest(f"{path}.type is {brief(kind)}; it must be 'function'", field=f"{path}.type")
    if "function" not in entry:
        raise InvalidRequest(f"{path}.function is missing", field=f"{path}.function")
    return _mapping(entry["function"], f"{path}.function", "a mapping", keys)


def _mapping(value: object, path: str, else_what: str, keys: frozenset[str]) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        wanted = else_what if else_what == "a mapping" else f"{else_what} or a mapping"
        raise InvalidRequest(f"{path} must be {wanted}, not {brief(value)}", field=path)
    for key, item in value.items():
        if key in keys:
            continue
        field = f"{path}.{key}"
        if key not in _ONLY_NONE:
            raise InvalidRequest(f"{field} is not known; {', '.join(sorted(keys))} are", field=field)
        if item:
            raise InvalidRequest(f"{field} is {brief(item)}, which is not supported", field=field)
    return value


def _content(value: object, path: str) -> str | None:
    """Text, None, or parts of text. Parts are joined by newlines, as other servers do for templates that take text."""
    if value is None or isinstance(value, str):
        return value
    texts = []
    for i, part in enumerate(items(value, path)):
        entry = _mapping(part, f"{path}[{i}]", "a mapping", frozenset({"type", "text"}) | _part_keys(part))
        if entry.get("type") != "text":
            field = f"{path}[{i}].type"
            raise InvalidRequest(f"{field} is {brief(entry.get('type'))}; only 'text' is supported", field=field)
        if not isinstance(text := entry.get("text"), str):
            field = f"{path}[{i}].text"
            raise InvalidRequest(f"{field} must be text, not {brief(text)}", field=field)
        texts.append(text)
    return "\n".join(texts)


def _part_keys(part: object) -> frozenset[str]:
    """A part of another type is refused for its type, not for the keys that the type brings."""
    if isinstance(part, Mapping) and part.get("type") != "text":
        return frozenset(str(key) for key in part)
    return frozenset()


def _json(value: object, path: str) -> Mapping[str, object] | str | None:
    if value is None or isinstance(value, str | Mapping):
        return value
    raise InvalidRequest(f"{path} must be a mapping or JSON text, not {brief(value)}", field=path)


def _name(function: Mapping[str, object], path: str) -> str:
    field = f"{path}.function.name"
    if not isinstance(name := function.get("name"), str):
        raise InvalidRequest(f"{field} must be text, not {brief(name)}", field=field)
    return name


def _text(entry: Mapping[str, object], key: str, path: str) -> str | None:
    value = entry.get(key)
    if value is None or isinstance(value, str):
        return value
    field = f"{path}.{key}"
    raise InvalidRequest(f"{field} must be text, not {brief(value)}", field=field)
