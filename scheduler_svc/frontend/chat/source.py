"""Sources: text that is read as if it were whole and comes in pieces.

Readers are generators, suspended where the text ends so far. So what they read does not depend on how it was cut.
"""

from collections.abc import Generator
from typing import TypeAlias, TypeVar

_T = TypeVar("_T")
Steps: TypeAlias = Generator[None, None, _T]
"""A reader: suspended for more text, until it has its result."""
LAYOUT = " \t\r\n"
"""What may stand beside a marker and says nothing."""
MAX_LAYOUT = 64
"""Characters of it before what begins an answer."""


class Source:
    """One answer's text from where it has been read to."""

    def __init__(self) -> None:
        self.is_ended = False
        """No more text will come."""
        self._text = ""
        self._at = 0
        self._recorded: list[str] | None = None
        self._record_from = 0

    @property
    def rest(self) -> str:
        """What has come and was not read."""
        return self._text[self._at :]

    def feed(self, text: str) -> None:
        """More has come."""
        if self._recorded is not None:
            self._recorded.append(self._text[self._record_from : self._at])
        self._text = self._text[self._at :] + text
        self._at = self._record_from = 0

    def advance(self, size: int) -> str:
        """Read so many characters, all of which have come."""
        text = self._text[self._at : self._at + size]
        self._at += size
        return text

    def record(self) -> None:
        """Keep what is read from here on."""
        self._recorded, self._record_from = [], self._at

    def recorded(self) -> str:
        """What was read since then; it is kept no longer."""
        text = "".join([*(self._recorded or ()), self._text[self._record_from : self._at]])
        self._recorded = None
        return text

    def character(self) -> Steps[str]:
        """The next one, read; empty at the end of the text."""
        while self._at == len(self._text):
            if self.is_ended:
                return ""
            yield
        return self.advance(1)

    def peek(self) -> Steps[str]:
        """The next one, not read; empty at the end of the text."""
        while self._at == len(self._text):
            if self.is_ended:
                return ""
            yield
        return self._text[self._at]

    def skip_space(self) -> Steps[str]:
        """Read blanks and line breaks; which they were."""
        skipped: list[str] = []
        while (character := (yield from self.peek())) and character in LAYOUT:
            skipped.append(self.advance(1))
        return "".join(skipped)

    def begins_with(self, *texts: str) -> Steps[str | None]:
        """Which of these, none of which begins with another, comes next; not read."""
        while True:
            rest = self.rest
            for text in texts:
                if rest.startswith(text):
                    return text
            if self.is_ended or not any(text.startswith(rest) for text in texts):
                return None
            yield

    def behind_layout(self, *texts: str) -> Steps[tuple[int, str] | None]:
        """Which of these comes next, behind how much layout; nothing is read. None behind more than `MAX_LAYOUT`."""
        while True:
            rest = self.rest
            text = rest.lstrip(LAYOUT)
            size = len(rest) - len(text)
            if size > MAX_LAYOUT:
                return None
            for each in texts:
                if text.startswith(each):
                    return size, each
            if self.is_ended or not any(each.startswith(text) for each in texts):
                return None
            yield

    def until(self, *ends: str) -> Steps[tuple[str, str | None]]:
        """Read up to the first of these, not including it; which it was, or none at the end of the text."""
        pieces: list[str] = []
        while True:
            rest = self.rest
            found = find_first(rest, ends)
            if found is not None:
                pieces.append(self.advance(found[0]))
                return "".join(pieces), found[1]
            kept = 0 if self.is_ended else open_length(rest, ends)
            pieces.append(self.advance(len(rest) - kept))
            if self.is_ended:
                return "".join(pieces), None
            yield


def find_first(text: str, markers: tuple[str, ...]) -> tuple[int, str] | None:
    """Where the first of these stands, and which it is; of those at one place the one named first."""
    first: tuple[int, str] | None = None
    for marker in markers:
        at = text.find(marker)
        if at >= 0 and (first is None or at < first[0]):
            first = at, marker
    return first


def open_length(text: str, markers: tuple[str, ...]) -> int:
    """How many of the last characters may be the beginning of a marker."""
    longest = 0
    for marker in markers:
        at = text.find(marker[0], max(0, len(text) - len(marker) + 1))
        while at >= 0:
            if marker.startswith(text[at:]):
                longest = max(longest, len(text) - at)
                break
            at = text.find(marker[0], at + 1)
    return longest
