"""JSON text: Python values as it, and what somebody else wrote back into values, exactly or not at all.

Python's `json` writes what is no JSON (NaN), makes text of keys that are none, and keeps the last of two equal keys;
here each is an `InvalidRequest` with its path. Keys keep their order and integers their digits.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from pagewire.client.errors import InvalidRequest, brief


def to_json(value: Mapping[str, object] | str, path: str) -> str:
    """The text of an object; a text is JSON already, and the server reads it. `path` is the field's, for errors."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{path} must be a mapping or JSON text, not {brief(value)}", field=path)
    try:
        return json.dumps(_plain(value, path), ensure_ascii=False, allow_nan=False)
    except RecursionError as error:
        raise InvalidRequest(f"{path} has too many levels, or holds itself", field=path) from error
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{path} must be what JSON can say: {error}", field=path) from error


class NotJson(ValueError):
    """The text is not JSON. `str()` says where."""


def from_json(text: str | bytes) -> Any:
    """The value of a text. Raises NotJson for what is no JSON, NaN, a key that stands twice, what is nested too deeply,
    and half a character: the client's one door for such text, whatever the library raises."""
    try:
        whole = text if isinstance(text, str) else text.decode()
        value = json.loads(whole, object_pairs_hook=_object, parse_constant=_refuse_constant)
        if "\\u" in whole:  # an escape may stand for half a character, which nothing can send or show
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise NotJson("it is nested too deeply") from error
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise NotJson(f"it holds text that is not UTF-8: {error.reason}") from error
    except Exception as error:  # ValueError for what is no JSON and for endless numbers, MemoryError
        problem = str(error) or type(error).__name__
        if "set_int_max_str_digits" in problem:
            problem = f"it holds an integer of more than {sys.get_int_max_str_digits()} digits"
        raise NotJson(problem) from error
    return value


def _plain(value: object, path: str) -> object:
    match value:
        case Mapping():
            for key in value:
                if not isinstance(key, str):
                    raise InvalidRequest(f"{path} has the key {brief(key)}; JSON's keys are text", field=path)
            return {key: _plain(item, f"{path}.{key}") for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
        case float() if not math.isfinite(value):
            raise InvalidRequest(f"{path} is {value}; JSON's numbers are finite", field=path)
        case None | str() | int() | float():
            return value
        case _:
            raise InvalidRequest(f"{path} is {brief(value)}, which JSON cannot say", field=path)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {brief(twice)} stands twice in an object")
    return made


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
