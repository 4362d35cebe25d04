"""The steps in flight: each has host memory that its plan is copied from and its tokens are copied to.

A ring of as many places as steps may be in flight. A place is used again only after the step that had it is over, since
until then the device may still read its plan and write its tokens.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

from pagewire.wire.columns import Int32Array
from pagewire.worker.cuda.timeline import StepTimes


@dataclass(frozen=True, slots=True)
class Place:
    """Host memory for one step; page-locked where the device copies from and to it."""

    plan: torch.Tensor
    """int32."""
    tokens: torch.Tensor
    """int32 [max_num_seqs]."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """A step that was launched."""

    epoch: int
    step_id: int
    place: Place
    num_tokens: int
    times: StepTimes

    def tokens(self) -> Int32Array:
        """A copy of what it sampled. The step is over."""
        tokens: Int32Array = np.array(self.place.tokens[: self.num_tokens].numpy())
        return tokens


class Ring:
    """Steps in flight, oldest first."""

    def __init__(self, num_places: int, plan_words: int, max_num_seqs: int, pinned: bool) -> None:
        def host(words: int) -> torch.Tensor:
            return torch.zeros(words, dtype=torch.int32, pin_memory=pinned)

        self._free = deque(Place(host(plan_words), host(max_num_seqs)) for _ in range(num_places))
        self._steps: deque[InFlight] = deque()

    @property
    def is_full(self) -> bool:
        """Whether the oldest step must be popped before another can start."""
        return not self._free

    @property
    def oldest(self) -> InFlight | None:
        return self._steps[0] if self._steps else None

    def next_place(self) -> Place:
        """The place that the next step gets. The ring is not full."""
        return self._free[0]

    def push(self, step: InFlight) -> None:
        """A step was launched with `next_place`."""
        self._free.popleft()
        self._steps.append(step)

    def pop(self) -> InFlight:
        """Take the oldest step out. It is over, and its tokens are read before the next `push`."""
        step = self._steps.popleft()
        self._free.append(step.place)
        return step
