"""Parameter types: which kinds of JSON value a tool's parameters may be, as its schema says.

For models that write arguments as bare text. It reads no JSON and checks no schema; what it does not understand may be
any kind. It runs in the process that renders, where the schema has been read.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

ParameterTypes: TypeAlias = Mapping[str, list[str]]
"""By parameter, JSON schema's names of types; none where any may be."""

_KINDS = ("string", "integer", "number", "boolean", "object", "array", "null")
_MAX_DEPTH = 8


def parameter_types(schema: Any) -> dict[str, list[str]]:
    """Of the properties of a schema, as Python has it."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping):
        return {}
    return {name: list(dict.fromkeys(_types(each, schema, set(), 0))) for name, each in properties.items()}


def _types(schema: Any, root: Mapping[str, Any], followed: set[str], depth: int) -> Iterator[str]:
    """`followed` are the references that were, each of which is followed once."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return
    said = schema.get("type")
    for kind in said if isinstance(said, list) else [said]:
        if kind in _KINDS:
            yield kind
    if said is None:
        for value in [*_listed(schema, "enum"), *([schema["const"]] if "const" in schema else [])]:
            yield _kind(value)
        for key in ("anyOf", "oneOf", "allOf"):
            for each in _listed(schema, key):
                yield from _types(each, root, followed, depth + 1)
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in followed:
            followed.add(reference)
            yield from _types(_referred(reference, root), root, followed, depth + 1)


def _listed(schema: Mapping[str, Any], key: str) -> list[Any]:
    values = schema.get(key)
    return values if isinstance(values, list) else []


def _referred(reference: str, root: Mapping[str, Any]) -> Any:
    if not reference.startswith("#/"):
        return None
    value: Any = root
    for step in reference[2:].split("/"):
        value = value.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(value, Mapping) else None
    return value


def _kind(value: Any) -> str:
    match value:
        case str():
            return "string"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case None:
            return "null"
        case list():
            return "array"
        case _:
            return "object"
