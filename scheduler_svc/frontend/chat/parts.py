"""Parts: what an answer's text turns out to say, piece by piece, as plain values."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """More of what is said."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of the reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call of a tool; `index` counts an answer's from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments, as JSON text."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallComplete:
    """A call is whole; its arguments are a JSON object."""

    index: int


@dataclass(frozen=True, slots=True)
class Malformed:
    """What was to be a call and is none."""

    text: str
    """As it was written, with its markers."""
    reason: str
    index: int | None
    """The call that it was taken for; what came of it is void. None where nothing came."""


Part = Content | Reasoning | CallBegun | CallArguments | CallComplete | Malformed


class MalformedCallError(Exception):
    """The text is no call; the message says why."""
