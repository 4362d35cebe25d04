"""Recording a step: work that is launched once, as often as wanted, over the same memory.

What is recorded reads and writes tensors whose addresses never change, and takes nothing from the host when it is run
again. `EagerRecorder` keeps the function and calls it, so that all of a recorded step but the recording itself can be
proven without a device.
"""

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import torch

Launch = Callable[[], None]
"""Runs the recorded work again, in the order of the device's stream; returns before it is done."""

_WARM_UPS = 2
"""Runs before a recording: the first compiles kernels and picks algorithms, and a library may allocate its workspace
in the second."""


class Recorder(Protocol):
    """A way to record."""

    def record(self, work: Launch) -> Launch:
        """Runs `work` at least once to warm up, then records it. Its effects until this returns must not matter."""


class EagerRecorder:
    """Calls the function anew every time."""

    def record(self, work: Launch) -> Launch:
        work()
        return work


class CudaGraphRecorder:
    """CUDA graphs that share one pool of memory: they run one after the other, so what one step's intermediate tensors
    occupied may hold the next one's. Record the largest first, so that the others fit into what it allocated."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def record(self, work: Launch) -> Launch:
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
