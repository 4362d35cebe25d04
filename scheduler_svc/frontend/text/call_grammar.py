"""Call grammars: calls of tools as each format writes them, with arguments held to their schema.

Rule `call_rest` is a call from behind its marker on, so that text before it can end with the marker.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from pagewire.scheduler_svc.frontend.text.chat_format import ARGUMENTS_MARKER, CALL_BEGINS, CALL_END, ToolCallFormat
from pagewire.scheduler_svc.frontend.text.grammar_writer import GrammarWriter, escaped
from pagewire.scheduler_svc.frontend.text.languages import CallableTool, Calls, GrammarTextError

_NO_ARGUMENTS = {"type": "object", "additionalProperties": False}
_COMMENTS = frozenset({"title", "description", "default", "examples", "$comment"})
_TEXT_KEYWORDS = _COMMENTS | {"type"}
_FUNCTION_KEYWORDS = _TEXT_KEYWORDS | {
    "properties",
    "required",
    "additionalProperties",
    "$defs",
    "definitions",
    "$schema",
    "$id",
}
_PARAMETER_END = "</parameter>"


class _CallForm(NamedTuple):
    """How calls stand together."""

    before: str
    """The first, behind the marker."""
    between: str | None
    """Two; none: there is one at most."""
    after: str
    """The last."""
    write: Callable[[GrammarWriter, CallableTool], str]
    """One."""


def call_marker(calls: Calls) -> str:
    """What stands before a call; empty for a format that needs nothing."""
    return "" if calls.format is ToolCallFormat.LLAMA3 else CALL_BEGINS[calls.format][0]


def write_calls(writer: GrammarWriter, calls: Calls) -> None:
    """Rules `calls` and `calls_rest`, the same from behind the first marker on. Raises GrammarTextError for tools that
    cannot be held to."""
    form = _FORMS[calls.format]
    for tool in calls.tools:
        writer.rule(f"call_{tool.index}", form.write(writer, tool))
    writer.rule("call", " | ".join(f"call_{tool.index}" for tool in calls.tools))
    further = ""
    if form.between is not None and not calls.is_single:
        further = f"({writer.text(form.between)} call)*"
    writer.rule("calls_rest", f"{writer.text(form.before)} call {further} {writer.text(form.after)}")
    writer.rule("calls", f"{writer.text(call_marker(calls))} calls_rest")


def _arguments(writer: GrammarWriter, tool: CallableTool) -> str:
    return writer.json(f"arguments_{tool.index}", _schema(tool), f"tools[{tool.index}].parameters")


def _schema(tool: CallableTool) -> dict[str, Any]:
    """Of an object. Raises GrammarTextError for a schema of something else."""
    what = f"tools[{tool.index}].parameters"
    if tool.schema is None:
        return _NO_ARGUMENTS
    try:
        schema = json.loads(tool.schema)
    except (ValueError, RecursionError) as error:
        raise GrammarTextError(f"has {what}, which is no JSON: {error}") from error
    if not isinstance(schema, dict):
        raise GrammarTextError(f"has {what}, which is no JSON object")
    kinds = schema.get("type", "object")
    if kinds != "object" and not (isinstance(kinds, list) and "object" in kinds):
        raise GrammarTextError(f"has {what}, which is a schema of {kinds}; arguments are an object")
    return {**schema, "type": "object"}


def _json_call(before: str, arguments_key: str, after: str) -> Callable[[GrammarWriter, CallableTool], str]:
    def write(writer: GrammarWriter, tool: CallableTool) -> str:
        name = json.dumps(tool.name, ensure_ascii=False)
        head = writer.text(f'{before}{{"name": {name}, "{arguments_key}": ')
        end = writer.text("}" + after)
        return f"{head} {_arguments(writer, tool)} {end}"

    return write


def _named_call(writer: GrammarWriter, tool: CallableTool) -> str:
    if any(each in tool.name for each in "[{") or tool.name != tool.name.strip():
        raise GrammarTextError(f"has tools[{tool.index}].name, which this model's calls cannot write: {tool.name!r}")
    return f"{writer.text(tool.name + ARGUMENTS_MARKER)} {_arguments(writer, tool)}"


def _function_call(writer: GrammarWriter, tool: CallableTool) -> str:
    """Parameters in the schema's order, each at most once."""
    what = f"tools[{tool.index}]"
    _check_name(tool.name, f"{what}.name")
    schema = _schema(tool)
    for key in schema:
        if key not in _FUNCTION_KEYWORDS:
            raise GrammarTextError(f"has {what}.parameters, whose keyword {key} this model's calls cannot be held to")
    properties, required = schema.get("properties", {}), schema.get("required", [])
    is_named = isinstance(required, list) and all(isinstance(name, str) for name in required)
    if not isinstance(properties, dict) or not is_named:
        raise GrammarTextError(f"has {what}.parameters, whose properties or required are no schema's")
    for name in required:
        if name not in properties:
            raise GrammarTextError(f"has {what}.parameters, which requires {name!r} and says nothing of it")
    shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    parameters = []
    for number, (name, value) in enumerate(properties.items()):
        where = f"{what}.parameters.properties.{name}"
        _check_name(name, where)
        rule = f"parameter_{tool.index}_{number}"
        head = writer.text(f"<parameter={name}>\n")
        writer.rule(rule, f"{head} {_value(writer, f'value_{tool.index}_{number}', value, shared, where)}")
        parameters.append(rule if name in required else f"{rule}?")
    head, end = writer.text(f"\n<function={tool.name}>\n"), writer.text(f"</function>\n{CALL_END}")
    return f"{head} {' '.join(parameters)} {end}"


def _check_name(name: str, what: str) -> None:
    if not name or any(each in name for each in "<>\n"):
        raise GrammarTextError(f"has {what}, whose name this model's calls cannot write: {name!r}")


def _value(writer: GrammarWriter, rule: str, schema: Any, shared: dict[str, Any], what: str) -> str:
    """A parameter's value and its end: text as it stands, or JSON."""
    kinds = schema.get("type") if isinstance(schema, dict) else None
    end = f"\n{_PARAMETER_END}\n"
    if kinds != "string":
        # What may be text among others would be written bare, and nobody could tell which it is.
        if not isinstance(kinds, str) and not (isinstance(kinds, list) and "string" not in kinds):
            raise GrammarTextError(f"has {what}, whose type is not one that this model's calls can be held to")
        return f"{writer.json(rule, {**schema, **shared}, what)} {writer.text(end)}"
    keywords = frozenset(schema) - _TEXT_KEYWORDS
    if keywords <= {"enum"} and keywords:
        choices = schema["enum"]
        if not isinstance(choices, list) or not choices or not all(_is_writable(each) for each in choices):
            raise GrammarTextError(f"has {what}, whose enum this model's calls cannot write")
        return f"({' | '.join(writer.text(each + end) for each in choices)})"
    for key in sorted(keywords - {"minLength", "maxLength"}):
        raise GrammarTextError(f"has {what}, whose keyword {key} this model's calls cannot be held to")
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    for name, length in (("minLength", least), ("maxLength", most)):
        if name in schema and (type(length) is not int or length < 0):
            raise GrammarTextError(
                f"has {what}, whose minLength or maxLength is no length: {name} is {json.dumps(length)[:80]}"
            )
    if most != "" and least > most:
        raise GrammarTextError(f"has {what}, whose minLength is {least}, more than its maxLength of {most}")
    # One terminal with its end: a terminal alone would take the end's beginning for more of its text.
    without_end = f"~/(.|\\n)*{escaped(_PARAMETER_END)}(.|\\n)*/"
    writer.rule(rule.upper(), f"(/(.|\\n){{{least},{most}}}/ & {without_end}) /{escaped(end)}/")
    return rule.upper()


def _is_writable(text: Any) -> bool:
    return isinstance(text, str) and _PARAMETER_END not in text


_FORMS: dict[ToolCallFormat, _CallForm] = {
    ToolCallFormat.QWEN3: _CallForm("", "\n<tool_call>", "", _json_call("\n", "arguments", f"\n{CALL_END}")),
    ToolCallFormat.QWEN3_CODER: _CallForm("", "\n<tool_call>", "", _function_call),
    ToolCallFormat.LLAMA3: _CallForm("", None, "", _json_call("", "parameters", "")),
    ToolCallFormat.MISTRAL: _CallForm("[", ", ", "]", _json_call("", "arguments", "")),
    ToolCallFormat.MISTRAL_ARGS: _CallForm("", "[TOOL_CALLS]", "", _named_call),
}
