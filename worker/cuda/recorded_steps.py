"""Decode steps recorded once per padded batch size."""

from collections.abc import Callable

import torch

from pagewire.worker.cuda.buckets import padded_size, padded_sizes
from pagewire.worker.cuda.recorder import Launch, Recorder
from pagewire.worker.cuda.step_buffers import StepBuffers, StepShape
from pagewire.worker.cuda.step_work import StepWork
from pagewire.worker.kernels.step_tensors import PADDING_SLOT
from pagewire.worker.slots.columns import SlotLimits


class RecordedSteps:
    """One launch per padded batch size, from 1 to max_num_seqs."""

    def __init__(self, launches: dict[int, Launch], max_num_seqs: int) -> None:
        self._launches = launches
        self._max_num_seqs = max_num_seqs

    def padded_size(self, num_seqs: int) -> int:
        """How many sequences a packed plan of num_seqs must be padded to."""
        return padded_size(num_seqs, self._max_num_seqs)

    def launch(self, padded_size: int) -> None:
        """Run the packed plan, which is of this size."""
        self._launches[padded_size]()


def record_steps(
    work: StepWork,
    buffers: StepBuffers,
    recorder: Recorder,
    limits: SlotLimits,
    progress: Callable[[float], None] = lambda done: None,
) -> RecordedSteps:
    """Record every size, the largest first, on nothing but padding, so that no slot and no block changes. `progress`
    is told which part is done, 0 … 1."""
    fill_with_padding(buffers, [1] * limits.max_num_seqs)
    sizes = padded_sizes(limits.max_num_seqs)
    launches: dict[int, Launch] = {}
    for index, size in enumerate(reversed(sizes), start=1):
        launches[size] = record_size(work, recorder, size, limits)
        progress(index / len(sizes))
    return RecordedSteps(launches, limits.max_num_seqs)


def fill_with_padding(buffers: StepBuffers, rows_B: list[int]) -> None:
    """Make the packed plan one of padding alone: sequences of so many rows each, all of which sample."""
    first_row, seqs = 0, []
    for index, num_rows in enumerate(rows_B):
        seqs.append((PADDING_SLOT, first_row, num_rows, -1, index))
        first_row += num_rows
    buffers.seqs_BQ(len(seqs)).copy_(torch.tensor(seqs, dtype=torch.int32))


def record_size(work: StepWork, recorder: Recorder, size: int, limits: SlotLimits) -> Launch:
    """Record a decode step of so many sequences. The packed plan is one of padding alone."""
    shape = StepShape.of_decodes(size, limits.max_model_len)
    return recorder.record(lambda: work.run(shape))
