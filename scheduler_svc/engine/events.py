"""Events: what frontends are to be told about their sequences, in the wire's own structs.

The outbox owns those that are not sent yet: one TokenBatch for each frontend, however many sequences it concerns. It
does not send.
"""

from typing import Generic, NamedTuple, TypeVar

import numpy as np

from pagewire.wire.columns import ID_BYTES, BoolArray, Int32Array, pack
from pagewire.wire.requests import PromptLogprobs, Rejected, SeqFinished, SeqStarted, TokenBatch, TokenLogprobs

Message = TypeVar("Message", SeqStarted, SeqFinished, Rejected, PromptLogprobs)


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
    logprobs: list[TokenLogprobs]
    """By index among these tokens."""
    scores: list[Event[PromptLogprobs]]


class Outbox:
    """Gathers starts, tokens and finishes of one turn of the loop."""

    def __init__(self) -> None:
        self._starts: list[Event[SeqStarted]] = []
        self._outcomes: list[StepOutcome] = []
        self._finishes: list[Event[SeqFinished]] = []
        self._scores: list[Event[PromptLogprobs]] = []

    def add_starts(self, starts: list[Event[SeqStarted]]) -> None:
        """Sequences whose first step has been planned."""
        self._starts += starts

    def add_outcome(self, outcome: StepOutcome) -> None:
        """A step's tokens and ends."""
        if len(outcome.tokens):
            self._outcomes.append(outcome)
        self._finishes += outcome.finishes
        self._scores += outcome.scores

    def add_finishes(self, finishes: list[Event[SeqFinished]]) -> None:
        """Ends that came without a token."""
        self._finishes += finishes

    def take(self) -> dict[int, TokenBatch]:
        """Frontend → everything gathered for it; the outbox is empty afterwards."""
        frontends = {start.frontend for start in self._starts} | {finish.frontend for finish in self._finishes}
        frontends.update(score.frontend for score in self._scores)
        for outcome in self._outcomes:
            frontends.update(outcome.frontends.tolist())
        batches = {frontend: self._batch(frontend, alone=len(frontends) == 1) for frontend in frontends}
        self._starts, self._outcomes, self._finishes, self._scores = [], [], [], []
        return batches

    def _batch(self, frontend: int, *, alone: bool) -> TokenBatch:
        """`alone`: everything is for this frontend."""
        handles: list[bytes] = []
        tokens: list[bytes] = []
        logprobs: list[TokenLogprobs] = []
        for outcome in self._outcomes:
            own = slice(None) if alone else outcome.frontends == frontend
            if outcome.logprobs:
                before = sum(map(len, handles)) // ID_BYTES
                logprobs += _own_logprobs(outcome, outcome.frontends == frontend, before)
            handles.append(pack(outcome.handles[own]))
            tokens.append(pack(outcome.tokens[own]))
        return TokenBatch(
            started=[start.message for start in self._starts if start.frontend == frontend],
            handles=b"".join(handles),
            tokens=b"".join(tokens),
            finished=[finish.message for finish in self._finishes if finish.frontend == frontend],
            logprobs=logprobs,
            prompt_logprobs=[score.message for score in self._scores if score.frontend == frontend],
        )


def _own_logprobs(outcome: StepOutcome, own: BoolArray, before: int) -> list[TokenLogprobs]:
    """Those of a frontend's tokens, by their index in its batch, in which `before` tokens stand already."""
    index = before + np.cumsum(own) - 1
    return [
        TokenLogprobs(int(index[each.index]), each.chosen, each.ids, each.values)
        for each in outcome.logprobs
        if own[each.index]
    ]
