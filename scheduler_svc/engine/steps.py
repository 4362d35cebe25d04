"""Steps: what the scheduler plans, which plans are with the worker, and in what order their results must come.

The pipeline owns epoch, step ids and the plans whose results are missing. It does not know sequences or sockets.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pagewire.scheduler_svc.engine.events import Event
from pagewire.wire.columns import IndexArray, Int32Array
from pagewire.wire.logits import MAX_SCORED_ROWS
from pagewire.wire.plan import StepPlan, StepResult
from pagewire.wire.requests import SeqStarted

_MAX_STEP_US = 24 * 3600 * 1_000_000


class ScoredChunk(NamedTuple):
    """A chunk of a prompt whose log-probabilities come back."""

    chunk: int
    """Its index among the plan's."""
    slot: int
    generation: int
    """`SlotTable.generation` when the plan was made."""
    position: int
    """Of the first token scored."""
    num_tokens: int
    num_candidates: int


class StepChunks:
    """The chunks of one step, and how many tokens they may still take."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.pairs: list[tuple[int, int]] = []
        """(slot, number of tokens)."""
        self.scored: list[ScoredChunk] = []
        self._scored_budget = MAX_SCORED_ROWS

    def take(self, wanted: int, *, scores: bool) -> int:
        """How many tokens a chunk gets, at most `wanted`. Where it scores, each of them may be a row of logits."""
        size = min(wanted, self.budget, self._scored_budget if scores else wanted)
        self.budget -= size
        if scores:
            self._scored_budget -= size
        return size


class StepSize(NamedTuple):
    """What a step's time depends on; the first two are at least 1."""

    tokens: int
    """Computed."""
    attended: int
    """Positions that these tokens look at, all together: of each its own and those before it."""
    grammars: int = 0
    """Sequences that draw their first token since their admission under a constraint: the worker compiles that now."""


class PlannedStep(NamedTuple):
    """A plan, and what is needed to understand its result."""

    plan: StepPlan
    rows: IndexArray
    """Slots that sample, in the order of the result's tokens."""
    generations: Int32Array
    """`SlotTable.generation` of those slots when the plan was made."""
    starts: list[Event[SeqStarted]]
    size: StepSize
    scored: Sequence[ScoredChunk] = ()
    """In the order of chunks."""


@dataclass(slots=True)
class Counters:
    """Totals since the scheduler was made."""

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    steps: int = 0


class PipelineError(Exception):
    """A worker answered something other than the next step: it and the engine no longer agree on anything."""


class Pipeline:
    """At most `depth` plans in flight, answered in order."""

    def __init__(self, depth: int, first_epoch: int) -> None:
        self._depth = depth
        self._in_flight: deque[PlannedStep] = deque()
        self._rested_before: int | None = None
        self._oldest_since_s = 0.0
        self.epoch = first_epoch - 1
        self.next_step_id = 0
        self.busy_us = 0
        self.idle_us = 0

    @property
    def has_room(self) -> bool:
        """Whether another plan may be sent now."""
        return len(self._in_flight) < self._depth

    @property
    def oldest(self) -> PlannedStep | None:
        """The step that is answered next; none where none is in flight."""
        return self._in_flight[0] if self._in_flight else None

    @property
    def oldest_since_s(self) -> float:
        """Since when that step has been the oldest: a plan waits for the one before it."""
        return self._oldest_since_s

    def begin(self) -> int:
        """Open the next epoch, forgetting what was in flight; returns its number."""
        self.epoch += 1
        self.next_step_id = 0
        self._in_flight.clear()
        self._rested_before = None
        return self.epoch

    def rest(self) -> None:
        """No sequence is left: what the worker idles until the next step is nobody's loss and does not count."""
        self._rested_before = self.next_step_id

    def push(self, step: PlannedStep, now_s: float) -> None:
        """A plan has been sent."""
        if not self._in_flight:
            self._oldest_since_s = now_s
        self._in_flight.append(step)
        self.next_step_id += 1

    def pop(self, result: StepResult, now_s: float) -> PlannedStep | None:
        """The step that a result answers; none for a result of an earlier epoch. Raises PipelineError."""
        if result.epoch != self.epoch:
            return None
        if not self._in_flight or self._in_flight[0].plan.step_id != result.step_id:
            expected = self._in_flight[0].plan.step_id if self._in_flight else "no step"
            raise PipelineError(f"a result of step {result.step_id} came where {expected} was awaited")
        self._oldest_since_s = now_s
        self.busy_us += plausible_us(result.busy_us)
        if result.step_id != self._rested_before:
            self.idle_us += plausible_us(result.idle_us)
        return self._in_flight.popleft()


def plausible_us(duration_us: int) -> int:
    """What a step can have taken: a clock that is wrong must not spoil the totals, nor a message that holds them."""
    return min(max(0, duration_us), _MAX_STEP_US)
