"""Languages: what a request constrains its output to, as plain data, checked but not compiled."""

import msgspec

from pagewire.scheduler_svc.frontend.text.chat_format import ToolCallFormat


class GrammarTextError(Exception):
    """A language is no text of its kind, or cannot be held to; the message says why."""


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


Content = JsonSchema | JsonObject | Regex | Grammar | Choice | StructuralTags


class AnswerReasoning(msgspec.Struct, frozen=True):
    """Reasoning at a chat answer's beginning."""

    begin: str
    end: str
    is_open: bool
    """The prompt has begun it; else it may begin, or not."""
    max_tokens: int | None


class CallableTool(msgspec.Struct, frozen=True):
    """A tool."""

    index: int
    """Among the request's."""
    name: str
    schema: str | None
    """Of its arguments; none where it has none."""


class Calls(msgspec.Struct, frozen=True):
    """Calls of tools."""

    format: ToolCallFormat
    tools: tuple[CallableTool, ...]
    """What they are held to; empty where they are as free as other text."""
    is_required: bool
    """Nothing else may stand in their place."""
    is_single: bool


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """A chat's answer: reasoning, then content or calls."""

    content: Content | None
    """None where it may be any text."""
    reasoning: AnswerReasoning | None
    calls: Calls | None
    """None where there are no tools to call."""


Language = Content | Answer
