"""The worker's step loop: receives plans, runs them in order, sends results.

Owns the order of things and their timing. It knows neither what a step computes nor how frames travel. While it waits
it sleeps in a poller: a spinning process would take a core from the threads of the model's own products.

The time between two results is either busy (a step ran) or idle (everything else: encoding, sending, waiting,
decoding), so the engine's sum of both is the wall time, and the idle share is what the device lost.
"""

import time
import traceback
from collections.abc import Callable
from typing import Protocol

from pagewire.wire.columns import Int32Array, pack
from pagewire.wire.control import Drain, EngineRestarted, Stop, WorkerLost
from pagewire.wire.plan import Begin, FromWorker, StepPlan, StepResult, ToWorker, WorkerFailed, WorkerHello
from pagewire.worker.inbox import Inbox
from pagewire.worker.plan_fields import PlanError


class Runner(Protocol):
    """A device that executes plans in order."""

    def begin(self, epoch: int) -> None:
        """Open an epoch: every slot is empty."""

    def end_epoch(self) -> None:
        """Refuse every plan until the next `begin`."""

    def run(self, plan: StepPlan) -> Int32Array:
        """One token or NO_TOKEN per row that samples, in the plan's order. Raises PlanError for a wrong plan."""


class Link(Protocol):
    """The way to the engine; see `pagewire.worker.link.EngineLink`."""

    def send(self, message: FromWorker) -> None: ...
    def receive(self) -> ToWorker | None: ...
    def wait(self, wakeup_fd: int) -> None: ...
    def reconnect(self) -> None: ...


class WorkerLoop:
    """Serves one engine after another until told to stop."""

    def __init__(
        self,
        *,
        link: Link,
        runner: Runner,
        inbox: Inbox,
        hello: WorkerHello,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._link = link
        self._runner = runner
        self._inbox = inbox
        self._hello = hello
        self._log = log
        self._clock = clock
        self._idle_since: float | None = None
        """When the last step of this epoch ended."""

    def serve(self) -> str | None:
        """Say hello, then execute plans until Stop. Returns None, or why a plan did not run to its end."""
        self._link.send(self._hello)
        while True:
            while (command := self._inbox.take()) is not None:
                match command:
                    case Stop():
                        return None
                    case EngineRestarted():
                        self._greet_new_engine()
                    case Drain() | WorkerLost():
                        pass  # the engine's and the frontends' business
            message = self._link.receive()
            match message:
                case None:
                    self._link.wait(self._inbox.fileno())
                    self._inbox.rest()
                case Begin():
                    self._runner.begin(message.epoch)
                    self._idle_since = None
                case StepPlan():
                    failure = self._execute(message)
                    if failure is not None:
                        self._link.send(WorkerFailed(failure))
                        return failure

    def _greet_new_engine(self) -> None:
        """What the old engine still had in flight is worthless: the new one begins an epoch of its own."""
        self._link.reconnect()
        self._runner.end_epoch()
        self._idle_since = None
        self._link.send(self._hello)

    def _execute(self, plan: StepPlan) -> str | None:
        """Run one plan and send its result; returns what went wrong, if anything did."""
        started = self._clock()
        try:
            tokens = self._runner.run(plan)
        except PlanError as error:
            return f"refused plan {plan.step_id} of epoch {plan.epoch}: {error}"
        except Exception as error:  # whatever it was, the engine must learn that this step has no result
            self._log(traceback.format_exc().rstrip())
            return f"step {plan.step_id} of epoch {plan.epoch} raised {type(error).__name__}: {error}"
        ended = self._clock()
        idle_s = 0.0 if self._idle_since is None else started - self._idle_since
        self._idle_since = ended
        self._link.send(
            StepResult(
                epoch=plan.epoch,
                step_id=plan.step_id,
                tokens=pack(tokens),
                busy_us=round((ended - started) * 1e6),
                idle_us=round(idle_s * 1e6),
            )
        )
        return None
