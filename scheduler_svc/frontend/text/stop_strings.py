"""Stop strings: found in text that arrives in pieces.

An Aho-Corasick automaton over UTF-8 bytes (Aho and Corasick 1975), built once per request and shared by its outputs.
It reads each byte once, so a token costs time in proportion to its own length, whatever the stop strings are; trying
every suffix of the text against every prefix of every stop string would cost up to 4,096 comparisons a token at the
limits of the contract.

    state           the longest suffix of the text that is a prefix of some stop string
    depth[state]    its length: exactly the bytes whose fate is open
    match[state]    the longest stop string that the text now ends with, or none

The first match is the one that ends first, and of those that end there the longest. This does not depend on how the
text was cut into tokens.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_NO_MATCH = -1


@dataclass(frozen=True, slots=True)
class StopMatch:
    """A stop string appeared: `end` bytes into the text just read, `length` bytes long."""

    stop: str
    end: int
    length: int


class StopAutomaton:
    """The immutable part: states and transitions for one set of stop strings, none of them empty."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.goto: list[dict[int, int]] = [{}]
        self.depth = [0]
        self.match = [_NO_MATCH]
        self.fail = [0]
        for index, stop in enumerate(stops):
            self._insert(index, stop.encode())
        self._link()
        self.first_bytes = frozenset(self.goto[0])
        self.open_depth = [self._open_depth(state) for state in range(len(self.goto))]

    def _insert(self, index: int, stop: bytes) -> None:
        state = 0
        for byte in stop:
            following = self.goto[state].get(byte)
            if following is None:
                following = len(self.goto)
                self.goto[state][byte] = following
                self.goto.append({})
                self.depth.append(self.depth[state] + 1)
                self.match.append(_NO_MATCH)
                self.fail.append(0)
            state = following
        self.match[state] = index

    def _link(self) -> None:
        """Breadth first, so that a state's fail link, which is shallower, is complete before it is used."""
        queue = deque(self.goto[0].values())
        while queue:
            state = queue.popleft()
            if self.match[state] == _NO_MATCH:
                self.match[state] = self.match[self.fail[state]]
            for byte, following in self.goto[state].items():
                self.fail[following] = self.step(self.fail[state], byte)
                queue.append(following)

    def _open_depth(self, state: int) -> int:
        """How long the longest suffix is that more text could make a stop string of. A state without a way on is a
        whole stop string."""
        while state and not self.goto[state]:
            state = self.fail[state]
        return self.depth[state]

    def step(self, state: int, byte: int) -> int:
        """The state after one more byte."""
        while True:
            following = self.goto[state].get(byte)
            if following is not None:
                return following
            if state == 0:
                return 0
            state = self.fail[state]


class StopScanner:
    """The mutable part: where one output's text stands. Feed it every byte once, in order."""

    __slots__ = ("_automaton", "_state")

    def __init__(self, automaton: StopAutomaton) -> None:
        self._automaton = automaton
        self._state = 0

    @property
    def undecided(self) -> int:
        """How many trailing bytes of the text read so far may be the start of a stop string."""
        return self._automaton.open_depth[self._state]

    def skip(self, text: bytes) -> None:
        """Read more text in which no stop string counts. One that begins in it and ends behind it does."""
        for byte in text:
            self._state = self._automaton.step(self._state, byte)

    def scan(self, text: bytes) -> StopMatch | None:
        """Read more text, up to the first match; nothing may be fed after one."""
        automaton = self._automaton
        state = self._state
        if state == 0 and automaton.first_bytes.isdisjoint(text):
            return None
        for position, byte in enumerate(text):
            state = automaton.step(state, byte)
            index = automaton.match[state]
            if index != _NO_MATCH:
                stop = automaton.stops[index]
                return StopMatch(stop, position + 1, len(stop.encode()))
        self._state = state
        return None
