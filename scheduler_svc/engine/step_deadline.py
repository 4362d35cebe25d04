"""The step deadline: how long the step that is answered next may take, judged by the steps that were answered before.

A worker that was stopped looks like one that computes for long; what tells them apart is how long comparable steps
took. Of every size, by powers of two of the tokens computed and of the context attended, the slowest step is kept. A
step's time is at most linear in these two, so every record bounds every other step, and the least bound counts:

    limit = 3 × min over records of (time × max(1, tokens / its tokens, attended / its attended)) + slack

and as long as it may take for each constraint that the step compiles, but never more than the longest wait allowed,
which also is the limit where there is no record yet. The factor is for what a size does not say: other work on the
cores, rows that cost more, a cold cache. A step that did not finish leaves no record, and records outlive the worker:
the next one computes the same model on the same machine. Yet that machine may have become slower since. So after every
limit that passed the next one is twice as long, until a step as large has been answered: a worker that computes is
given the time it needs, and one that was stopped is noticed within the first limit.

Time in flight is counted in its owner's ticks, as `Watchdog` counts it, so that a machine that slept loses no worker.
It knows neither sockets nor what is done about a step that is overdue.
"""

import math
from typing import NamedTuple

from pagewire.scheduler_svc.engine.steps import PlannedStep, StepSize

_FACTOR = 3.0
_GRAMMAR_S = 3.0
"""A frontend lets nothing in that took it more than a second of a processor to compile (`CompileLimits`)."""


class _Record(NamedTuple):
    duration_s: float
    size: StepSize


class StepDeadline:
    """Of one engine's steps. Its owner tells it every answer, and asks at every tick."""

    def __init__(self, longest_s: float, slack_s: float, tick_s: float) -> None:
        """`longest_s`: the limit that no step exceeds, 0 where none is ever overdue; `slack_s` beyond what the records
        say."""
        self._longest_s = longest_s
        self._slack_s = slack_s
        self._tick_s = tick_s
        self._slowest: dict[tuple[int, int], _Record] = {}
        self._mark: tuple[int, int] | None = None
        self._ticks = 0
        self._patience = 1.0
        self._overdue: StepSize | None = None
        """The last that was, while no step as large has been answered since."""

    def answered(self, size: StepSize, duration_s: float) -> None:
        """A step of this size took so long, from when it was the oldest in flight to its result."""
        late = self._overdue
        if late is not None and size.tokens >= late.tokens and size.attended >= late.attended:
            self._patience, self._overdue = 1.0, None
        if size.grammars:  # says little of those that compile none
            return
        cell = _cell(size)
        record = self._slowest.get(cell)
        if record is None or duration_s > record.duration_s:
            self._slowest[cell] = _Record(duration_s, size)

    def limit_s(self, size: StepSize) -> float:
        """How long a step of this size may take."""
        bounds = (
            each.duration_s * max(1.0, size.tokens / each.size.tokens, size.attended / each.size.attended)
            for each in self._slowest.values()
        )
        compiling_s = size.grammars * _GRAMMAR_S
        # What a step of its own kind once took, it may take, whatever others say that were measured on better days.
        own = self._slowest.get(_cell(size))
        longest_s = max(min(bounds, default=math.inf), 0.0 if own is None else own.duration_s)
        limit_s = _FACTOR * longest_s + compiling_s + self._slack_s
        return min(self._longest_s, self._patience * limit_s)

    def overdue_s(self, step: PlannedStep | None) -> float | None:
        """At every tick: the limit that the oldest step in flight has now passed, told once for each time that it
        passes; none as long as it has not, or where nothing is in flight."""
        mark = None if step is None else (step.plan.epoch, step.plan.step_id)
        if step is None or mark != self._mark:
            self._mark = mark
            self._ticks = 0
            return None
        self._ticks += 1
        if not self._longest_s or self._ticks * self._tick_s < (limit_s := self.limit_s(step.size)):
            return None
        self._ticks = 0
        self._patience, self._overdue = 2 * self._patience, step.size
        return limit_s


def _cell(size: StepSize) -> tuple[int, int]:
    """Steps of one cell differ by less than twice in either."""
    return (size.tokens.bit_length(), size.attended.bit_length())
