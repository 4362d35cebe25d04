"""Constraints: what an answer must be, as the contract has it, from Python arguments.

What a schema, a grammar or a regular expression means is the server's to say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from pagewire.client.errors import InvalidRequest
from pagewire.client.json_text import to_json
from pagewire.client.messages import build_message
from pagewire.client.prompts import Parameters, Tag, TagLike
from pagewire.v1 import generation_pb2 as pb

_KINDS = ("json_schema", "json_object", "regex", "grammar", "choice", "structural_tags")


def constraint(parameters: Parameters) -> pb.Constraint | None:
    """What the answer must be; none where it may be anything. Raises InvalidRequest."""
    path = "generation.constraint"
    # False asks for nothing, as a flag that was not given.
    given = [name for name in _KINDS if parameters.get(name) not in (None, False)]
    triggers = parameters.get("tag_triggers")
    if triggers and "structural_tags" not in given:
        field = f"{path}.structural_tags.triggers"
        raise InvalidRequest(f"{field} is set without structural_tags", field=field)
    if not given:
        return None
    if len(given) > 1:
        raise InvalidRequest(f"{path} takes one of {', '.join(_KINDS)}, not {' and '.join(given)}", field=path)
    choice, tags = parameters.get("choice"), parameters.get("structural_tags")
    return build_message(
        pb.Constraint,
        path,
        **_content(parameters, path),
        choice=None if choice is None else build_message(pb.Choices, f"{path}.choice", texts=choice),
        structural_tags=None if tags is None else _tags(tags, triggers, f"{path}.structural_tags"),
    )


def _content(given: Mapping[str, Any], path: str) -> dict[str, object]:
    """The kinds that a constraint and a tag have both."""
    return {
        "json_schema": json_or_none(given.get("json_schema"), f"{path}.json_schema"),
        "json_object": pb.JsonObject() if given.get("json_object") else None,
        "regex": given.get("regex"),
        "grammar": given.get("grammar"),
    }


def _tags(tags: Sequence[TagLike], triggers: Sequence[str] | None, path: str) -> pb.StructuralTags:
    messages = [_tag(tag, f"{path}.tags[{index}]") for index, tag in enumerate(tags)]
    return build_message(pb.StructuralTags, path, tags=messages, triggers=triggers)


def _tag(tag: TagLike, path: str) -> pb.StructuralTag:
    names = [field.name for field in fields(Tag)]
    given = {name: getattr(tag, name) for name in names} if isinstance(tag, Tag) else dict(tag)
    for name in given:
        if name not in names:
            raise InvalidRequest(f"{path}.{name} is not known; a tag has {', '.join(names)}", field=f"{path}.{name}")
    kinds = [
        name for name in ("json_schema", "json_object", "regex", "grammar") if given.get(name) not in (None, False)
    ]
    if len(kinds) > 1:
        raise InvalidRequest(f"{path} takes one content, not {' and '.join(kinds)}", field=path)
    return build_message(
        pb.StructuralTag, path, begin=given.get("begin"), end=given.get("end"), **_content(given, path)
    )


def json_or_none(value: Mapping[str, object] | str | None, path: str) -> str | None:
    """As JSON text. Raises InvalidRequest."""
    return None if value is None else to_json(value, path)
