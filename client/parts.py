"""Parts: what a chat's answer says, piece by piece, and the whole of it.

Owns the record of one output's parts, and the rule that a stream which was submitted again delivers none twice: it
tells them again from its beginning, in other pieces, and what was delivered is compared and dropped. It does no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pagewire.client.errors import ProtocolError
from pagewire.client.prompts import Message, ToolCall
from pagewire.client.types import ContentPart, MalformedCall, Part, ReasoningPart, ToolCallPart


class PartsDiffer(Exception):
    """A resubmitted stream tells something other than what was delivered."""


class PartsRecord:
    """One output's parts so far, joined where one goes on with the last."""

    def __init__(self) -> None:
        self._delivered: list[Part] = []
        self._again: list[Part] | None = None
        """What the current connection has told, where it tells again what an earlier one did."""

    def rewind(self) -> None:
        """The request was submitted again."""
        self._again = []

    @property
    def is_behind(self) -> bool:
        """Whether the current connection has yet to tell again what was delivered."""
        return self._again is not None and _beyond(self._delivered, self._again) is None

    def accept(self, parts: Iterable[Part]) -> tuple[Part, ...]:
        """What of these is new. Raises PartsDiffer."""
        if self._again is None:
            new = list(parts)
            for part in new:
                _join(self._delivered, part)
            return tuple(new)
        for part in parts:
            _join(self._again, part)
        beyond = _beyond(self._delivered, self._again)
        if beyond is not None:  # it is past what was delivered, and nothing is compared any more
            self._delivered, self._again = self._again, None
            return tuple(beyond)
        if _beyond(self._again, self._delivered) is None:
            raise PartsDiffer("its parts are others")
        return ()

    def message(self) -> Message:
        """The whole answer. Raises ProtocolError for a call that came to no end."""
        content = [part.text for part in self._delivered if isinstance(part, ContentPart)]
        reasoning = [part.text for part in self._delivered if isinstance(part, ReasoningPart)]
        void = {part.index for part in self.malformed_calls}
        calls = [part for part in self._delivered if isinstance(part, ToolCallPart) and part.index not in void]
        for call in calls:
            if not call.is_complete or call.name is None:
                raise ProtocolError(f"the stream's call {call.index} did not come to its end")
        return Message(
            role="assistant",
            content="".join(content) if content or not (calls or reasoning) else None,
            tool_calls=tuple(ToolCall(call.id, call.name or "", call.arguments) for call in calls),
            reasoning_content="".join(reasoning) if reasoning else None,
        )

    @property
    def malformed_calls(self) -> tuple[MalformedCall, ...]:
        """What was to be a call and is none."""
        return tuple(part for part in self._delivered if isinstance(part, MalformedCall))


def _join(parts: list[Part], part: Part) -> None:
    last = parts[-1] if parts else None
    if isinstance(last, ContentPart) and isinstance(part, ContentPart):
        parts[-1] = ContentPart(last.text + part.text)
    elif isinstance(last, ReasoningPart) and isinstance(part, ReasoningPart):
        parts[-1] = ReasoningPart(last.text + part.text)
    elif isinstance(last, ToolCallPart) and isinstance(part, ToolCallPart) and last.index == part.index:
        arguments = last.arguments + part.arguments
        parts[-1] = replace(last, arguments=arguments, is_complete=last.is_complete or part.is_complete)
    else:
        parts.append(part)


def _beyond(before: list[Part], now: list[Part]) -> list[Part] | None:
    """What `now` has beyond `before`; None where it does not begin with it."""
    if not before:
        return list(now)
    *firsts, last = before
    if len(now) < len(before) or now[: len(firsts)] != firsts:
        return None
    same, *others = now[len(firsts) :]
    if isinstance(last, ToolCallPart) and isinstance(same, ToolCallPart) and _is_same_call(last, same):
        rest = same.arguments[len(last.arguments) :]
        is_completed = same.is_complete and not last.is_complete
        more: list[Part] = [ToolCallPart(same.index, None, None, rest, is_completed)] if rest or is_completed else []
        return more + others
    for kind in (ContentPart, ReasoningPart):
        if isinstance(last, kind) and isinstance(same, kind) and same.text.startswith(last.text):
            rest = same.text[len(last.text) :]
            return [kind(rest), *others] if rest else others
    return others if last == same else None


def _is_same_call(last: ToolCallPart, now: ToolCallPart) -> bool:
    names_agree = (last.index, last.id, last.name) == (now.index, now.id, now.name)
    return names_agree and now.arguments.startswith(last.arguments) and now.is_complete >= last.is_complete
