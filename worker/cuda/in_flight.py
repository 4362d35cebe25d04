"""Steps in flight, and their buffers: host memory that a step's plan is copied from and its tokens are copied to.

There are as many buffers as steps may be in flight. A step's are used again only after it is over, since until then the
device may still read its plan and write its tokens.
"""

from collections import deque
from dataclasses import dataclass

import torch

from pagewire.wire.columns import Int32Array
from pagewire.wire.plan import StepResult
from pagewire.worker.cuda.special_results import SpecialInFlight
from pagewire.worker.cuda.timeline import StepTimes
from pagewire.worker.immediate import Sampled, step_result
from pagewire.worker.slots.state import Slots, Step


@dataclass(frozen=True, slots=True)
class HostBuffers:
    """Host memory for one step; page-locked where a device copies from and to it."""

    plan: torch.Tensor
    """int32, as `PlanPacker` fills it."""
    plan_np: Int32Array
    """The same memory."""
    tokens: torch.Tensor
    """int32 [max_num_seqs]."""

    @classmethod
    def allocate(cls, plan_words: int, max_num_seqs: int, pinned: bool) -> "HostBuffers":
        plan = torch.zeros(plan_words, dtype=torch.int32, pin_memory=pinned)
        return cls(plan, plan.numpy(), torch.zeros(max_num_seqs, dtype=torch.int32, pin_memory=pinned))


@dataclass(frozen=True, slots=True)
class StepInFlight:
    """A step that was launched."""

    epoch: int
    step_id: int
    buffers: HostBuffers
    step: Step
    times: StepTimes
    special: SpecialInFlight | None
    """Of a step that has special rows."""

    def result(self) -> StepResult:
        """What it sampled, and when. The step is over, and its buffers not yet used again."""
        sampled = Sampled(self.tokens) if self.special is None else self.special.sampled(self.tokens.copy())
        return step_result(self.epoch, self.step_id, sampled, busy_us=self.times.busy_us, idle_us=self.times.idle_us)

    @property
    def tokens(self) -> Int32Array:
        """One per row that samples; a view of the buffers."""
        tokens: Int32Array = self.buffers.tokens[: len(self.step.sample_slots)].numpy()
        return tokens


class BuffersInFlight:
    """Steps in flight, oldest first, and the buffers that are free. The slots are told what each step sampled."""

    def __init__(self, buffers: list[HostBuffers], slots: Slots) -> None:
        self._slots = slots
        self._free = deque(buffers)
        self._steps: deque[StepInFlight] = deque()

    @property
    def is_full(self) -> bool:
        """Whether the oldest step must be popped before another can start."""
        return not self._free

    @property
    def oldest(self) -> StepInFlight | None:
        """The step that is over next."""
        return self._steps[0] if self._steps else None

    @property
    def next_free(self) -> HostBuffers:
        """What the next step gets. They are not all in flight."""
        return self._free[0]

    def push(self, step: StepInFlight) -> None:
        """A step was launched with `next_free`."""
        self._free.popleft()
        self._steps.append(step)

    def pop(self) -> StepResult:
        """The oldest step's result; its buffers are free. Waits for the step where it is not over."""
        step = self._steps[0]
        step.times.wait()
        result = step.result()
        self._slots.record(step.step, step.tokens)
        self._steps.popleft()
        self._free.append(step.buffers)
        return result
