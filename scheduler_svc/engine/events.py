"""Events: what frontends are to be told about their sequences, in the wire's own structs.

The outbox owns those that are not sent yet: one TokenBatch for each frontend, however many sequences it concerns. It
does not send.
"""

from typing import Generic, NamedTuple, TypeVar

from pagewire.wire.columns import Int32Array, pack
from pagewire.wire.requests import Rejected, SeqFinished, SeqStarted, TokenBatch

Message = TypeVar("Message", SeqStarted, SeqFinished, Rejected)


class Event(NamedTuple, Generic[Message]):
    """What one frontend is to be told about one of its sequences."""

    frontend: int
    message: Message


class StepOutcome(NamedTuple):
    """New tokens, as columns of equal length, and the sequences that they ended."""

    frontends: Int32Array
    handles: Int32Array
    tokens: Int32Array
    finishes: list[Event[SeqFinished]]


class Outbox:
    """Gathers starts, tokens and finishes of one turn of the loop."""

    def __init__(self) -> None:
        self._starts: list[Event[SeqStarted]] = []
        self._outcomes: list[StepOutcome] = []
        self._finishes: list[Event[SeqFinished]] = []

    def add_starts(self, starts: list[Event[SeqStarted]]) -> None:
        """Sequences whose first step has been planned."""
        self._starts += starts

    def add_outcome(self, outcome: StepOutcome) -> None:
        """A step's tokens and ends."""
        if len(outcome.tokens):
            self._outcomes.append(outcome)
        self._finishes += outcome.finishes

    def add_finishes(self, finishes: list[Event[SeqFinished]]) -> None:
        """Ends that came without a token."""
        self._finishes += finishes

    def take(self) -> dict[int, TokenBatch]:
        """Frontend → everything gathered for it; the outbox is empty afterwards."""
        frontends = {start.frontend for start in self._starts} | {finish.frontend for finish in self._finishes}
        for outcome in self._outcomes:
            frontends.update(outcome.frontends.tolist())
        batches = {frontend: self._batch(frontend, alone=len(frontends) == 1) for frontend in frontends}
        self._starts, self._outcomes, self._finishes = [], [], []
        return batches

    def _batch(self, frontend: int, *, alone: bool) -> TokenBatch:
        """`alone`: everything is for this frontend."""
        handles, tokens = [], []
        for outcome in self._outcomes:
            own = slice(None) if alone else outcome.frontends == frontend
            handles.append(pack(outcome.handles[own]))
            tokens.append(pack(outcome.tokens[own]))
        return TokenBatch(
            started=[start.message for start in self._starts if start.frontend == frontend],
            handles=b"".join(handles),
            tokens=b"".join(tokens),
            finished=[finish.message for finish in self._finishes if finish.frontend == frontend],
        )
