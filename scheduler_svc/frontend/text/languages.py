"""Languages: what a request constrains its output to, as plain data, checked but not compiled."""

import msgspec


class JsonSchema(msgspec.Struct, frozen=True, tag="json_schema"):
    """JSON of a schema."""

    text: str


class JsonObject(msgspec.Struct, frozen=True, tag="json_object"):
    """Any JSON object."""


class Regex(msgspec.Struct, frozen=True, tag="regex"):
    """What a regular expression matches whole."""

    pattern: str


class Grammar(msgspec.Struct, frozen=True, tag="grammar"):
    """A context-free grammar, in Lark or GBNF."""

    text: str


class Choice(msgspec.Struct, frozen=True, tag="choice"):
    """One of some texts."""

    texts: tuple[str, ...]


Part = JsonSchema | JsonObject | Regex | Grammar


class Tag(msgspec.Struct, frozen=True):
    """A constrained part of free text."""

    trigger: str
    """The beginning of `begin` from which on it is this tag, or another of the same trigger."""
    begin: str
    content: Part
    end: str


class StructuralTags(msgspec.Struct, frozen=True, tag="structural_tags"):
    """Free text in which some parts are constrained."""

    tags: tuple[Tag, ...]


Language = JsonSchema | JsonObject | Regex | Grammar | Choice | StructuralTags
