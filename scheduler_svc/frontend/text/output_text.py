"""Output text: an output's tokens, characters made whole, stop strings found, and what is open held back.

It knows neither messages nor streams. A token leaves once the fate of each of its bytes is known: no byte of it waits
for the rest of a character, and none may be the start of a stop string. Tokens leave in order, each with the text that
became complete with it.

    held      [ 12 "ab" ] [ 7 "S" ] [ 9 "TO" ] [ 31 "" + E2 82 pending ]
                decided     `-- undecided --´     `-- incomplete --´

Invariants: the texts of all tokens that left, joined, are the decoded text of all ids up to the stop string that ended
it, or all of it; every id taken leaves exactly once, also those inside a stop string that is cut, with empty text.
"""

from pagewire.scheduler_svc.frontend.text.detokenizer import Detokenizer
from pagewire.scheduler_svc.frontend.text.stop_strings import StopAutomaton, StopMatch, StopScanner

Entry = tuple[int, bytes]
"""A token id and its text."""


class OutputText:
    """Takes token ids, gives entries. After `matched` is set nothing may be taken."""

    __slots__ = ("_detokenizer", "_held", "_include_stop", "_may_end", "_num_unstopped", "_scanner", "matched")

    def __init__(
        self, detokenizer: Detokenizer, stops: StopAutomaton | None, include_stop: bool, min_tokens: int = 0
    ) -> None:
        """A stop string that is complete within the first `min_tokens` tokens ends nothing."""
        self._detokenizer = detokenizer
        self._scanner = None if stops is None else StopScanner(stops)
        self._include_stop = include_stop
        self._held: list[Entry] = []
        self._num_unstopped = min_tokens
        """Tokens to come in which no stop string may end."""
        self._may_end = False
        """Whether one may end in the last token taken."""
        self.matched: str | None = None
        """The stop string that ended the output."""

    def take(self, token: int) -> list[Entry]:
        """The tokens whose text is decided now, this one or earlier ones."""
        text = self._detokenizer.take(token)
        if self._num_unstopped:
            self._num_unstopped -= 1
            if self._scanner is not None:
                self._scanner.skip(text)
        elif self._scanner is not None:
            self._may_end = True
            if (match := self._scanner.scan(text)) is not None:
                return self._end_at(match, token, text)
        if not self._held and not self._detokenizer.num_pending and not (self._scanner and self._scanner.undecided):
            return [(token, text)]
        self._held.append((token, text))
        return self._release(self._num_decided())

    def flush(self) -> list[Entry]:
        """The output has ended: everything that was held. What is still no character becomes U+FFFD at its token."""
        text = self._detokenizer.flush()
        if self._held:
            token, held_text = self._held.pop()
            if self._scanner is not None and self._may_end and (match := self._scanner.scan(text)) is not None:
                return self._end_at(match, token, held_text + text, already_scanned=len(held_text))
            self._held.append((token, held_text + text))
        return self._release(len(self._held))

    def _release(self, count: int) -> list[Entry]:
        released = self._held[:count]
        del self._held[:count]
        return released

    def _num_decided(self) -> int:
        """How many of the held tokens, from the oldest, have all their bytes decided."""
        pending = self._detokenizer.num_pending
        waiting_from = len(self._held)
        while pending > 0 and waiting_from > 0:
            waiting_from -= 1
            pending -= self._detokenizer.num_bytes(self._held[waiting_from][0])
        undecided = 0 if self._scanner is None else self._scanner.undecided
        undecided_from = len(self._held)
        while undecided > 0 and undecided_from > 0:
            undecided_from -= 1
            undecided -= len(self._held[undecided_from][1])
        return min(waiting_from, undecided_from)

    def _end_at(self, match: StopMatch, token: int, text: bytes, already_scanned: int = 0) -> list[Entry]:
        """Cut the text after the stop string, or before it, and let everything go."""
        self.matched = match.stop
        entries = self._release(len(self._held))
        entries.append((token, text[: already_scanned + match.end]))
        if not self._include_stop:
            to_cut = match.length
            position = len(entries)
            while to_cut > 0:
                position -= 1
                held_token, held_text = entries[position]
                kept = max(0, len(held_text) - to_cut)
                to_cut -= len(held_text) - kept
                entries[position] = (held_token, held_text[:kept])
        return entries
