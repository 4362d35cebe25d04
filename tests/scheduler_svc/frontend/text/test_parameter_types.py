"""What a tool's parameters may be, as its schema says; references that lead around are followed once."""

from typing import Any

import pytest

from pagewire.scheduler_svc.frontend.text.parameter_types import parameter_types

AROUND = {"A": {"anyOf": [{"$ref": "#/$defs/A"}] * 200}}


@pytest.mark.parametrize(
    ("schema", "kinds"),
    [
        ({"type": "string"}, ["string"]),
        ({"type": ["integer", "null"]}, ["integer", "null"]),
        (
            {"enum": ["a", 1, None, 1.5, True, [], {}]},
            ["string", "integer", "null", "number", "boolean", "array", "object"],
        ),
        ({"const": False}, ["boolean"]),
        ({"anyOf": [{"type": "string"}, {"$ref": "#/$defs/n"}]}, ["string", "integer"]),
        ({"$ref": "#/$defs/n"}, ["integer"]),
        ({"$ref": "#/$defs/nowhere"}, []),
        ({"$ref": 5}, []),
        ({"type": "nothing"}, []),
        (True, []),
        ({"$ref": "#/$defs/A"}, []),
    ],
)
def test_kinds(schema: Any, kinds: list[str]) -> None:
    whole = {"properties": {"p": schema}, "$defs": {"n": {"type": "integer"}, **AROUND}}
    assert parameter_types(whole) == {"p": kinds}


@pytest.mark.parametrize("schema", [None, {}, [], {"properties": []}, {"properties": {}}])
def test_no_properties(schema: Any) -> None:
    assert parameter_types(schema) == {}
