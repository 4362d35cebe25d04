"""Graphs of decode steps: work that is captured once per padded batch size and launched as often as wanted.

What is captured reads and writes tensors whose addresses never change, and takes nothing from the host when it is
launched again.
"""

import contextlib
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import torch

from pagewire.worker.cuda.step_buffers import StepBuffers, StepShape
from pagewire.worker.cuda.step_work import StepWork
from pagewire.worker.kernels.contract import PADDING_SLOT
from pagewire.worker.slots.columns import SlotLimits

Result = TypeVar("Result", bound=torch.Tensor | None)
Launch = Callable[[], Result]
"""Runs the captured work again, in the order of the device's stream; returns before it is done. Where the work gives a
tensor, the launch gives the same memory, which means something until the next launch of any graph."""

_WARM_UPS = 2
"""Runs before a capture: the first compiles kernels and picks algorithms, and a library may allocate its workspace
in the second."""


class GraphCapture(Protocol):
    """Captures work, over and over, in memory that its graphs share."""

    def capture(self, work: Launch[Result]) -> Launch[Result]:
        """Runs `work` at least once to warm up, then captures it. Its effects until this returns must not matter."""


class CudaGraphCapture:
    """CUDA graphs that share one pool of memory: they run one after the other, so what one step's intermediate tensors
    occupied may hold the next one's. Capture the largest first, so that the others fit into what it allocated."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def capture(self, work: Launch[Result]) -> Launch[Result]:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                work()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = work()
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
        seen: Any = None if result is None else _Memory.of(result)

        def launch() -> Result:
            graph.replay()
            return cast(Result, seen)

        return launch


class _Memory:
    """A tensor's memory by its address, as the CUDA array interface describes it.

    A graph's results lie in the pool that its graphs share. A tensor that owned its part of it would keep it from the
    graphs that are captured later, once for each of them: more than a gigabyte of logits.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        element = tensor.element_size()
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape),
            "strides": tuple(stride * element for stride in tensor.stride()),
            "typestr": f"<i{element}",  # which has no bfloat16
            "data": (tensor.data_ptr(), False),
            "version": 3,
        }

    @classmethod
    def of(cls, tensor: torch.Tensor) -> torch.Tensor:
        """A view of the memory that does not keep it."""
        return torch.as_tensor(cls(tensor), device=tensor.device).view(tensor.dtype)


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

    def __init__(self, launches: dict[int, Launch[torch.Tensor]], max_num_seqs: int) -> None:
        self._launches = launches
        self._max_num_seqs = max_num_seqs

    def padded_size(self, num_seqs: int) -> int:
        """How many sequences a packed plan of num_seqs must be padded to."""
        return padded_size(num_seqs, self._max_num_seqs)

    def launch(self, padded_size: int) -> torch.Tensor:
        """Run the packed plan, which is of this size. Returns its logits; see `Launch`."""
        return self._launches[padded_size]()


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
    launches: dict[int, Launch[torch.Tensor]] = {}
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


def capture_size(work: StepWork, capture: GraphCapture, size: int, limits: SlotLimits) -> Launch[torch.Tensor]:
    """Capture a decode step of so many sequences, which gives its logits. The packed plan is one of padding alone."""
    shape = StepShape.of_decodes(size, limits.max_model_len)
    return capture.capture(lambda: work.run(shape).sampled_SV)
