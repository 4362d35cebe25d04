"""The immediate runner: a device that computes while the loop calls it, so that a step is over when `submit` returns.

Owns the timing of such steps. The time between two results is either busy (a step ran) or idle (everything else:
encoding, sending, waiting, decoding), so the engine's sum of both is the wall time, and the idle share is what the
device lost.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from pagewire.wire.columns import Int32Array, pack
from pagewire.wire.plan import NO_TOKEN, NOT_NUMBERS, ChunkLogprobs, RowFailure, RowLogprobs, StepPlan, StepResult

_NO_TOKEN = pack([NO_TOKEN])


class Sampled(NamedTuple):
    """What a step gave."""

    tokens: Int32Array
    """One token or NO_TOKEN per row that samples, in the plan's order."""
    failures: Sequence[RowFailure] = ()
    """Of rows without a token: those whose logits were not what failed them."""
    logprobs: Sequence[RowLogprobs] = ()
    prompt_logprobs: Sequence[ChunkLogprobs] = ()


def step_result(epoch: int, step_id: int, sampled: Sampled, *, busy_us: int, idle_us: int) -> StepResult:
    """A step's result. Of a row without a token for which there is no failure, the logits were no numbers."""
    column = pack(sampled.tokens)
    failures: list[RowFailure] = []
    if _NO_TOKEN in column:  # ids are far below 2^24, so no two of them have these four bytes between them
        known = {failure.row: failure for failure in sampled.failures}
        rows = np.flatnonzero(sampled.tokens == NO_TOKEN).tolist()
        failures = [known.get(row) or RowFailure(row, NOT_NUMBERS) for row in rows]
    elif not sampled.logprobs and not sampled.prompt_logprobs:
        return StepResult(epoch, step_id, column, busy_us, idle_us)
    return StepResult(
        epoch,
        step_id,
        column,
        busy_us,
        idle_us,
        failures=failures,
        logprobs=list(sampled.logprobs),
        prompt_logprobs=list(sampled.prompt_logprobs),
    )


class PlanRunner(Protocol):
    """A device that runs one plan at a time."""

    def begin(self, epoch: int) -> None:
        """Open an epoch: every slot is empty."""

    def end_epoch(self) -> None:
        """Refuse every plan until the next `begin`."""

    def run(self, plan: StepPlan) -> Sampled:
        """What the plan's step gave. Raises PlanError for a wrong plan."""


class ImmediateRunner:
    """`pagewire.worker.loop.Runner` over a device that runs one plan at a time."""

    def __init__(self, runner: PlanRunner, clock: Callable[[], float] = time.perf_counter) -> None:
        self._runner = runner
        self._clock = clock
        self._results: deque[StepResult] = deque()
        self._idle_since: float | None = None
        """When the last step of this epoch ended."""

    def begin(self, epoch: int) -> None:
        self._results.clear()
        self._idle_since = None
        self._runner.begin(epoch)

    def end_epoch(self) -> None:
        self._results.clear()
        self._runner.end_epoch()

    def submit(self, plan: StepPlan) -> None:
        started = self._clock()
        sampled = self._runner.run(plan)
        ended = self._clock()
        idle_s = 0.0 if self._idle_since is None else started - self._idle_since
        self._idle_since = ended
        self._results.append(
            step_result(
                plan.epoch,
                plan.step_id,
                sampled,
                busy_us=round((ended - started) * 1e6),
                idle_us=round(idle_s * 1e6),
            )
        )

    def take(self) -> StepResult | None:
        return self._results.popleft() if self._results else None
