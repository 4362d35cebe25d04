"""What the engine has to tell frontends since it last did: one TokenBatch each, however many sequences it concerns.

Owns the events that are not sent yet. It does not send.
"""

import numpy as np

from pagewire.scheduler_svc.engine.steps import Finish, Start, StepOutcome
from pagewire.wire.columns import pack
from pagewire.wire.requests import SeqFinished, TokenBatch


class Outbox:
    """Gathers starts, tokens and finishes of one turn of the loop."""

    def __init__(self) -> None:
        self._starts: list[Start] = []
        self._outcomes: list[StepOutcome] = []
        self._finishes: list[Finish] = []

    def add_starts(self, starts: list[Start]) -> None:
        """Sequences whose first step has been planned."""
        self._starts += starts

    def add_outcome(self, outcome: StepOutcome) -> None:
        """A step's tokens and ends."""
        if len(outcome.tokens):
            self._outcomes.append(outcome)
        self._finishes += outcome.finishes

    def add_finishes(self, finishes: list[Finish]) -> None:
        """Ends that came without a token."""
        self._finishes += finishes

    def take(self) -> dict[int, TokenBatch]:
        """Frontend → everything gathered for it; the outbox is empty afterwards."""
        frontends = {start.frontend for start in self._starts} | {finish.key.frontend for finish in self._finishes}
        for outcome in self._outcomes:
            frontends.update(np.unique(outcome.frontends).tolist())
        batches = {frontend: self._batch(frontend) for frontend in frontends}
        self._starts, self._outcomes, self._finishes = [], [], []
        return batches

    def _batch(self, frontend: int) -> TokenBatch:
        handles, tokens = bytearray(), bytearray()
        for outcome in self._outcomes:
            own = outcome.frontends == frontend
            handles += pack(outcome.handles[own])
            tokens += pack(outcome.tokens[own])
        return TokenBatch(
            started=[start.event for start in self._starts if start.frontend == frontend],
            handles=bytes(handles),
            tokens=bytes(tokens),
            finished=[SeqFinished(f.key.handle, f.kind, f.limit) for f in self._finishes if f.key.frontend == frontend],
        )
