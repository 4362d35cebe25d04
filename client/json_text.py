"""Python values as JSON text, exactly or not at all, and JSON text of files back into values, likewise.

Python's `json` writes what is no JSON (NaN), makes text of keys that are none, and keeps the last of two equal keys;
here each is an `InvalidRequest` with its path. Keys keep their order and integers their digits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import NoReturn

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


def from_json(text: str) -> object:
    """The value of a text. Raises ValueError for what is no JSON, NaN and a key that stands twice."""
    return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)


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
