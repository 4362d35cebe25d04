"""Calls whose arguments are written one by one, as Qwen3-Coder does:

    <function=get_weather>
    <parameter=city>
    Paris
    </parameter>
    </function>

A value is text; what it is in JSON, the tool's schema says. Text is handed on as it comes, other values once whole.
"""

import json
from collections.abc import Collection, Mapping

from pagewire.scheduler_svc.frontend.chat.json_calls import ENDED, OpenCall
from pagewire.scheduler_svc.frontend.chat.parts import MalformedCallError
from pagewire.scheduler_svc.frontend.chat.source import Source, Steps, find_first, open_length
from pagewire.scheduler_svc.frontend.limits import quote
from pagewire.scheduler_svc.frontend.text.parameter_types import ParameterTypes

_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_LINE_END = "\n"
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}


def read_function(source: Source, call: OpenCall, types: Mapping[str, ParameterTypes]) -> Steps[None]:
    """From <function= to </function>; `types` by tool. Raises MalformedCallError."""
    name = yield from _named(source, _FUNCTION, "function")
    call.name(name)
    known = types.get(name, {})
    seen: set[str] = set()
    while True:
        yield from source.skip_space()
        match (yield from source.begins_with(_PARAMETER, _FUNCTION_END)):
            case None:
                raise MalformedCallError(_instead(source, f"a parameter or {_FUNCTION_END}"))
            case end if end == _FUNCTION_END:
                source.advance(len(end))
                break
        parameter = yield from _named(source, _PARAMETER, "parameter")
        if parameter in seen:
            raise MalformedCallError(f"it has the parameter {quote(parameter)} twice")
        call.arguments(("{" if not seen else ", ") + json.dumps(parameter, ensure_ascii=False) + ": ")
        seen.add(parameter)
        yield from _value(source, call, parameter, known.get(parameter, ()))
    if seen:
        call.arguments("}")
        call.check_arguments()


def _named(source: Source, begin: str, what: str) -> Steps[str]:
    if (yield from source.begins_with(begin)) is None:
        raise MalformedCallError(_instead(source, begin))
    source.advance(len(begin))
    name, end = yield from source.until(">", "<", _LINE_END)
    if end is None:
        raise MalformedCallError(ENDED)
    if end != ">" or not name:
        raise MalformedCallError(f"the name of its {what} does not end")
    source.advance(len(end))
    return name


def _instead(source: Source, wanted: str) -> str:
    return ENDED if source.is_ended and not source.rest else f"{wanted} is missing"


def _value(source: Source, call: OpenCall, parameter: str, kinds: Collection[str]) -> Steps[None]:
    if (yield from source.peek()) == _LINE_END:
        source.advance(1)
    is_text = not kinds or "string" in kinds
    if is_text and "null" not in kinds:
        call.arguments('"')
        yield from _text(source, call)
        call.arguments('"')
        return
    text, end = yield from source.until(_LINE_END + _PARAMETER_END, _PARAMETER_END)
    if end is None:
        raise MalformedCallError(ENDED)
    source.advance(len(end))
    if is_text and text != "null":
        call.arguments(json.dumps(text, ensure_ascii=False))
        return
    text = _PYTHON_WORDS.get(text.strip(), text.strip())
    if not _is_one_of(text, kinds):
        raise MalformedCallError(f"its parameter {quote(parameter)} is {quote(text)}, which is no {' or '.join(kinds)}")
    call.arguments(text)


def _text(source: Source, call: OpenCall) -> Steps[None]:
    """Up to the parameter's end, as the inside of a JSON text."""
    ends = (_LINE_END + _PARAMETER_END, _PARAMETER_END)
    while True:
        rest = source.rest
        found = find_first(rest, ends)
        if found is not None:
            call.arguments(_escaped(source.advance(found[0])))
            source.advance(len(found[1]))
            return
        if source.is_ended:
            raise MalformedCallError(ENDED)
        call.arguments(_escaped(source.advance(len(rest) - open_length(rest, ends))))
        yield


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _is_one_of(text: str, kinds: Collection[str]) -> bool:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    match value:
        case bool():
            return "boolean" in kinds
        case int():
            return "integer" in kinds or "number" in kinds
        case float():
            return "number" in kinds
        case None:
            return "null" in kinds
        case list():
            return "array" in kinds
        case dict():
            return "object" in kinds
        case _:
            return False
