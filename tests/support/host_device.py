"""A device that is the host: work is done when the call returns, and a captured step is its function, called anew."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from pagewire.wire.launch import AttentionBackendName
from pagewire.worker.attention.choice import AttentionNeeds
from pagewire.worker.attention.triton import TritonAttention
from pagewire.worker.cuda.graphs import Launch, Result
from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.kernels.sets import reference_kernels

CPU = torch.device("cpu")


class EagerCapture:
    """Calls the function anew every time, so that all of a captured step but the capture can be proven without a
    device."""

    def capture(self, work: Launch[Result]) -> Launch[Result]:
        work()
        return work


class HostTimeline:
    """For work that is done when the call returns."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last_end: float | None = None

    def restart(self) -> None:
        self._last_end = None

    def begin(self) -> "HostStepTimes":
        return HostStepTimes(self._clock, self._last_end, self._record_end)

    def _record_end(self, time_s: float) -> None:
        self._last_end = time_s


class HostStepTimes:
    """See `HostTimeline`."""

    def __init__(self, clock: Callable[[], float], last_end: float | None, record_end: Callable[[float], None]) -> None:
        self._clock = clock
        self._record_end = record_end
        self._start = clock()
        self._end = self._start
        self._last_end = self._start if last_end is None else last_end

    def end(self) -> None:
        self._end = self._clock()
        self._record_end(self._end)

    def is_over(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    @property
    def busy_us(self) -> int:
        return round((self._end - self._start) * 1e6)

    @property
    def idle_us(self) -> int:
        return round((self._start - self._last_end) * 1e6)


class CpuMeter:
    """A CPU with a memory of its own size, in which nothing counts."""

    def total(self) -> int:
        return 1 << 24

    def free(self) -> int:
        return 1 << 24

    def allocated(self) -> int:
        return 0

    def peak(self, work: Callable[[], None]) -> int:
        work()
        return 0


class CpuPlatform:
    """The CPU in a CUDA device's place."""

    def __init__(self) -> None:
        self.device = CPU
        self.meter = CpuMeter()
        self.timeline = HostTimeline()

    def new_capture(self) -> EagerCapture:
        return EagerCapture()

    def kernels(self, *, exact: bool = False) -> Sequence[Kernels]:
        if exact:
            return [replace(reference_kernels(), name="row-by-row", is_exact=True, linear=row_by_row)]
        return [reference_kernels()]

    def attention(self, wanted: AttentionBackendName, needs: AttentionNeeds) -> TritonAttention:
        return TritonAttention(
            needs.config,
            needs.kernels,
            needs.device,
            max_num_seqs=needs.max_num_seqs,
            max_model_len=needs.max_model_len,
            num_sms=1,
        )


def row_by_row(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """A linear whose rows do not depend on each other."""
    for index in range(len(x)):
        y = weight.float() @ x[index].float()
        out[index] = y if bias is None else y + bias
