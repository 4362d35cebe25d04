"""The timeline of a device's work: when it is done with a step, how long the step took, and how long the device had
nothing to do before it.

A step's time begins where its forward pass may start, not where its plan is copied: whatever keeps the device from
computing counts as idle, so that the idle share never flatters.

The loop sleeps in a poller that knows sockets and pipes, and a device reports to neither; asking it in turns would
either spin or, at the poller's millisecond, lose more than a small model's step takes. So the waker's thread waits for
each step in order and then wakes the loop, which asks the step itself.
"""

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Protocol

import torch


class StepTimes(Protocol):
    """One step's beginning and end in the order of a device's work. Times are there once it is over."""

    def end(self) -> None:
        """Everything that belongs to the step has been launched."""

    def is_over(self) -> bool:
        """Whether the device is done with the step. Raises what the device reports where work failed."""

    def wait(self) -> None:
        """Sleep until the step is over."""

    @property
    def busy_us(self) -> int:
        """From its beginning to its end."""

    @property
    def idle_us(self) -> int:
        """From the end of the step before to its beginning; 0 for the first."""


class Timeline(Protocol):
    """The order of a device's work."""

    def restart(self) -> None:
        """The next step is the first: what lies before it is nobody's loss."""

    def begin(self) -> StepTimes:
        """A step begins here. The one before has ended."""


class CudaTimeline:
    """By events on the device's current stream. Waiting sleeps rather than spins: the thread that waits shares its
    process, and its cores, with the one that launches the next step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last_end: torch.cuda.Event | None = None

    def restart(self) -> None:
        self._last_end = None

    def begin(self) -> "CudaStepTimes":
        times = CudaStepTimes(torch.cuda.current_stream(self._device), self._last_end)
        self._last_end = times.ended
        return times


class CudaStepTimes:
    """See `CudaTimeline`."""

    def __init__(self, stream: torch.cuda.Stream, last_end: torch.cuda.Event | None) -> None:
        self._stream = stream
        self._last_end = last_end
        self._began: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.ended: torch.cuda.Event = torch.cuda.Event(  # type: ignore[no-untyped-call]
            enable_timing=True, blocking=True
        )
        self._began.record(stream)

    def end(self) -> None:
        self.ended.record(self._stream)

    def is_over(self) -> bool:
        is_over: bool = self.ended.query()  # type: ignore[no-untyped-call]
        return is_over

    def wait(self) -> None:
        # Who waits is a thread whose device is the first one, where CUDA would make a context that nobody needs.
        with torch.cuda.device(self._stream.device):
            self.ended.synchronize()

    @property
    def busy_us(self) -> int:
        return _us_between(self._began, self.ended)

    @property
    def idle_us(self) -> int:
        return 0 if self._last_end is None else _us_between(self._last_end, self._began)


def _us_between(first: torch.cuda.Event, last: torch.cuda.Event) -> int:
    elapsed_ms: float = first.elapsed_time(last)
    return max(0, round(elapsed_ms * 1000))


class Waker:
    """Calls `wake` once after each watched step, in order, from a thread of its own."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._steps: queue.SimpleQueue[StepTimes] = queue.SimpleQueue()
        # A daemon: a process that is told to stop ends without waiting for a step that hangs.
        threading.Thread(target=self._run, name="step-waker", daemon=True).start()

    def watch(self, step: StepTimes) -> None:
        """Wake when this step, which has ended on the host's side, is over on the device."""
        self._steps.put(step)

    def _run(self) -> None:
        while True:
            step = self._steps.get()
            # The loop meets the same error when it asks the step, and knows what to do.
            with contextlib.suppress(Exception):
                step.wait()
            self._wake()
