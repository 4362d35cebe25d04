"""Wakes the loop when a step is over.

The loop sleeps in a poller that knows sockets and pipes, and a device reports to neither; asking it in turns would
either spin or, at the poller's millisecond, lose more than a small model's step takes. So one thread waits for each
step in order and then wakes the loop, which asks the step itself.
"""

import contextlib
import queue
import threading
from collections.abc import Callable

from pagewire.worker.cuda.timeline import StepTimes


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
