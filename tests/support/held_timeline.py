"""A device whose steps are over when a test says so."""

import threading

TIMEOUT_S = 30.0


class HeldStep:
    """`pagewire.worker.cuda.timeline.StepTimes`, scripted: busy for (index + 1) ms, idle for index ms."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.has_ended = False
        self._released = threading.Event()
        self.error: Exception | None = None
        """Raised by whoever asks after the release."""

    def release(self, error: Exception | None = None) -> None:
        """The device is done with the step, or found it faulty."""
        self.error = error
        self._released.set()

    def end(self) -> None:
        self.has_ended = True

    def is_over(self) -> bool:
        if not self._released.is_set():
            return False
        if self.error is not None:
            raise self.error
        return True

    def wait(self) -> None:
        if not self._released.wait(TIMEOUT_S):
            raise TimeoutError(f"step {self.index} was not released")
        self.is_over()

    @property
    def busy_us(self) -> int:
        return 1000 * (self.index + 1)

    @property
    def idle_us(self) -> int:
        return 1000 * self.index


class HeldTimeline:
    """Collects the steps that were launched."""

    def __init__(self) -> None:
        self.steps: list[HeldStep] = []
        self.restarts = 0
        self._launched = threading.Condition()

    def restart(self) -> None:
        self.restarts += 1

    def begin(self) -> HeldStep:
        with self._launched:
            step = HeldStep(len(self.steps))
            self.steps.append(step)
            self._launched.notify_all()
        return step

    def step(self, index: int) -> HeldStep:
        """The step once it was launched."""
        with self._launched:
            assert self._launched.wait_for(lambda: len(self.steps) > index, TIMEOUT_S), f"no step {index}"
        return self.steps[index]
