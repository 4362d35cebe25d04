"""Graphs of decode steps: work that is captured once per padded batch size and launched as often as wanted.

What is captured reads and writes tensors whose addresses never change, and takes nothing from the host when it is
launched again.
"""

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import torch

from pagewire.worker.cuda.step_buffers import StepBuffers, StepShape
from pagewire.worker.cuda.step_work import StepWork
from pagewire.worker.kernels.contract import PADDING_SLOT
from pagewire.worker.slots.columns import SlotLimits

Launch = Callable[[], None]
"""Runs the captured work again, in the order of the device's stream; returns before it is done."""

_WARM_UPS = 2
"""Runs before a capture: the first compiles kernels and picks algorithms, and a library may allocate its workspace
in the second."""


class GraphCapture(Protocol):
    """Captures work, over and over, in memory that its graphs share."""

    def capture(self, work: Launch) -> Launch:
        """Runs `work` at least once to warm up, then captures it. Its effects until this returns must not matter."""


class CudaGraphCapture:
    """CUDA graphs that share one pool of memory: they run one after the other, so what one step's intermediate tensors
    occupied may hold the next one's. Capture the largest first, so that the others fit into what it allocated."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def capture(self, work: Launch) -> Launch:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                work()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                work()
        except Exception:
            # Torch ends the capture, whose own error comes first, and so does not get to giving the pool up.
            with contextlib.suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(self._device.index or 0, self._pool)
            raise
        current.wait_stream(self._stream)
        # The first launch brings the graph to the device: time and memory that no request should wait for, and that
        # must be taken before free memory is measured.
        graph.replay()
        self._graphs.append(graph)
        return graph.replay


def padded_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, 8, then multiples of eight, and last max_num_seqs itself; ascending. Up to eight a row costs what one
    does, and past it a step is padded by seven rows at most."""
    sizes = [size for size in (1, 2, 4) if size < max_num_seqs]
    sizes += range(8, max_num_seqs, 8)
    return [*sizes, max_num_seqs]


def padded_size(num_seqs: int, max_num_seqs: int) -> int:
    """The least captured size that holds num_seqs, which is at least 1."""
    size = 1 << (num_seqs - 1).bit_length() if num_seqs <= 8 else -(-num_seqs // 8) * 8
    return min(size, max_num_seqs)


class StepGraphs:
    """Graphs of decode steps: one per padded batch size, from 1 to max_num_seqs."""

    def __init__(self, launches: dict[int, Launch], max_num_seqs: int) -> None:
        self._launches = launches
        self._max_num_seqs = max_num_seqs

    def padded_size(self, num_seqs: int) -> int:
        """How many sequences a packed plan of num_seqs must be padded to."""
        return padded_size(num_seqs, self._max_num_seqs)

    def launch(self, padded_size: int) -> None:
        """Run the packed plan, which is of this size."""
        self._launches[padded_size]()


def capture_steps(
    work: StepWork,
    buffers: StepBuffers,
    capture: GraphCapture,
    limits: SlotLimits,
    progress: Callable[[float], None] = lambda done: None,
) -> StepGraphs:
    """Capture every size, the largest first, on nothing but padding, so that no slot and no block changes. `progress`
    is told which part is done, 0 … 1."""
    fill_with_padding(buffers, [1] * limits.max_num_seqs)
    sizes = padded_sizes(limits.max_num_seqs)
    launches: dict[int, Launch] = {}
    for index, size in enumerate(reversed(sizes), start=1):
        launches[size] = capture_size(work, capture, size, limits)
        progress(index / len(sizes))
    return StepGraphs(launches, limits.max_num_seqs)


def fill_with_padding(buffers: StepBuffers, rows_B: list[int]) -> None:
    """Make the packed plan one of padding alone: sequences of so many rows each, all of which sample."""
    first_row, seqs = 0, []
    for index, num_rows in enumerate(rows_B):
        seqs.append((PADDING_SLOT, first_row, num_rows, -1, index))
        first_row += num_rows
    buffers.seqs_BQ(len(seqs)).copy_(torch.tensor(seqs, dtype=torch.int32))


def capture_size(work: StepWork, capture: GraphCapture, size: int, limits: SlotLimits) -> Launch:
    """Capture a decode step of so many sequences. The packed plan is one of padding alone."""
    shape = StepShape.of_decodes(size, limits.max_model_len)
    return capture.capture(lambda: work.run(shape))
