"""JSON text of a request → plain values, exact and within bounds.

Keys keep their order, integers their digits; a number with a fraction or an exponent is a double, as in Python's own
`json`, with which templates print it. What would be lost on the way is refused with its path: a key that stands twice,
a number that is no number or beyond a double, half of a surrogate pair.

It knows neither chats nor templates. What requests bring is read in the process that renders: a text of a megabyte with
many values takes 50 ms. What a model wrote is read in the frontend, once its values have been counted.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.limits import MAX_CHAT_PARTS, MAX_JSON_DEPTH, MAX_JSON_INTEGER_DIGITS

_MAX_WRITTEN_CHARACTERS = 80

_Path = tuple["_Path | str", str]
"""Where a value stands: its parent's path and its own step. Written out for an error alone: a caller can make names of
megabytes, and copying them once for each value below would take minutes."""


class _Pairs(list[tuple[str, Any]]):
    """An object as the decoder met it: a key may stand twice."""


@dataclass(frozen=True, slots=True)
class _NoNumber:
    """A number that cannot be kept; refused once its path is known."""

    problem: str


class JsonReader:
    """Reads the texts of one chat, and counts their values together."""

    def __init__(self, chat_path: str, max_values: int) -> None:
        """`max_values` is what the chat's tools and tool calls have left of MAX_CHAT_PARTS."""
        self._chat_path = chat_path
        self._num_left = max_values

    def object(self, text: str, path: str) -> dict[str, Any]:
        """The object that a text holds. Raises InvalidArgument with the path of what is wrong."""
        try:
            value = _DECODER.decode(text)
        except RecursionError:
            raise InvalidArgument(path, _TOO_DEEP) from None
        except ValueError as error:
            raise InvalidArgument(path, f"is not JSON: {error}") from None
        if not isinstance(value, _Pairs):
            raise InvalidArgument(path, f"is JSON, but {_kind(value)}; it must be an object")
        return self._object(value, path, 1)

    def _object(self, pairs: _Pairs, path: "_Path | str", depth: int) -> dict[str, Any]:
        self._enter(len(pairs), path, depth)
        made: dict[str, Any] = {}
        for name, value in pairs:
            step = (path, name)
            _check_text(name, step)
            if name in made:
                raise InvalidArgument(_written(step), "stands twice in its object")
            made[name] = self._value(value, step, depth)
        return made

    def _value(self, value: Any, path: _Path, depth: int) -> Any:
        match value:
            case _Pairs():
                return self._object(value, path, depth + 1)
            case list():
                self._enter(len(value), path, depth + 1)
                return [self._value(item, (path, f"[{i}]"), depth + 1) for i, item in enumerate(value)]
            case str():
                _check_text(value, path)
                return value
            case _NoNumber():
                raise InvalidArgument(_written(path), value.problem)
            case _:
                return value

    def _enter(self, num_values: int, path: "_Path | str", depth: int) -> None:
        if depth > MAX_JSON_DEPTH:
            raise InvalidArgument(_written(path), _TOO_DEEP)
        self._num_left -= num_values
        if self._num_left < 0:
            raise InvalidArgument(
                self._chat_path, f"has more than {MAX_CHAT_PARTS} tools, tool calls and values in their JSON"
            )


def _integer(text: str) -> int | _NoNumber:
    num_digits = len(text.lstrip("-"))
    if num_digits > MAX_JSON_INTEGER_DIGITS:
        return _NoNumber(f"is an integer of {num_digits} digits; at most {MAX_JSON_INTEGER_DIGITS} may be")
    return int(text)


def _double(text: str) -> float | _NoNumber:
    number = float(text)
    return number if math.isfinite(number) else _NoNumber(f"is {_cut(text)}, which is beyond a double")


def _no_number(name: str) -> _NoNumber:
    return _NoNumber(f"is {name}, which is not JSON; numbers must be finite")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_Pairs, parse_int=_integer, parse_float=_double, parse_constant=_no_number
)
_TOO_DEEP = f"has more than {MAX_JSON_DEPTH} levels"


def _check_text(text: str, path: _Path) -> None:
    """JSON's escapes can make half of a surrogate pair, which no UTF-8 can carry on."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        written = _written(path).encode(errors="backslashreplace").decode()
        raise InvalidArgument(written, "has half of a surrogate pair in its text") from None


def _kind(value: object) -> str:
    match value:
        case list():
            return "an array"
        case str():
            return "a string"
        case bool():
            return "a boolean"
        case None:
            return "null"
        case _:
            return "a number"


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_WRITTEN_CHARACTERS else f"{text[:_MAX_WRITTEN_CHARACTERS]}…"


def _written(path: "_Path | str") -> str:
    if isinstance(path, str):
        return path
    parent, step = path
    return _written(parent) + (_cut(step) if step.startswith("[") else f".{_cut(step)}")
