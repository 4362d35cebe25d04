"""The worker's step loop: receives plans, runs them in order, sends results.

Owns the order of things. It knows neither what a step computes, nor whether a device computes it while the loop goes
on, nor how frames travel. While it waits it sleeps in a poller: a spinning process would take a core from the threads
of the model's own products. Whoever is done with a step in the meantime wakes it through the inbox.

A step may run for a second, so commands cannot be read where steps run: the lifeline's thread and signal handlers put
them into the inbox. Both `queue.SimpleQueue.put` and a write to a non-blocking pipe are safe in a signal handler.
"""

import contextlib
import os
import queue
import traceback
from collections.abc import Callable
from typing import Protocol

from pagewire.wire.control import Drain, EngineRestarted, Reload, Stop, ToChild, WorkerLost
from pagewire.wire.plan import Begin, FromWorker, StepPlan, StepResult, ToWorker, WorkerFailed, WorkerHello
from pagewire.worker.slots.plan_check import PlanError


class RankLost(Exception):
    """Another rank is gone, or takes too long: this one cannot go on. Any call of a runner may raise it."""


class Runner(Protocol):
    """A device that executes plans in order.

    Busy and idle times of its results add up to the time that passed for the device, from an epoch's first step on.
    """

    def begin(self, epoch: int) -> None:
        """Open an epoch: every slot is empty, and results not yet taken are dropped."""

    def end_epoch(self) -> None:
        """Refuse every plan until the next `begin`; results not yet taken are dropped."""

    def submit(self, plan: StepPlan) -> None:
        """Start a plan's step; it may be over before this returns, or go on. Raises PlanError for a wrong plan."""

    def take(self) -> StepResult | None:
        """The result of the oldest step not yet taken, in the order of plans; none at once while that step goes on.
        Whoever makes a runner whose steps go on has it call `Inbox.wake` after each."""


class Link(Protocol):
    """The way to the engine; see `pagewire.worker.link.EngineLink`."""

    def send(self, message: FromWorker) -> None: ...
    def receive(self) -> ToWorker | None: ...
    def wait(self, wakeup_fd: int) -> bool: ...
    def reconnect(self) -> None: ...


class Inbox:
    """Commands for the worker's main thread, and its alarm: any thread puts, the main thread takes."""

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[ToChild] = queue.SimpleQueue()
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)

    def put(self, command: ToChild) -> None:
        """Add a command and wake whoever polls `fileno`."""
        self._commands.put(command)
        self.wake()

    def wake(self) -> None:
        """Wake whoever polls `fileno`, from any thread."""
        # A full pipe wakes just as well.
        with contextlib.suppress(BlockingIOError):
            os.write(self._write_fd, b"\0")

    def take(self) -> ToChild | None:
        """The oldest command, or None at once."""
        return None if self._commands.empty() else self._commands.get()  # nobody else takes any

    def fileno(self) -> int:
        """Readable after a `put` or `wake`, until `rest`."""
        return self._read_fd

    def rest(self) -> None:
        """Call after waking and before `take`: the descriptor is quiet until the next `put` or `wake`."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read_fd, 4096)


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
    ) -> None:
        self._link = link
        self._runner = runner
        self._inbox = inbox
        self._hello = hello
        self._log = log

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
                    case Drain() | WorkerLost() | Reload():
                        pass  # the engine's and the frontends' business
            failure = self._send_results()
            if failure is None:
                failure = self._receive()
            if failure is not None:
                self._link.send(WorkerFailed(failure))
                return failure

    def _greet_new_engine(self) -> None:
        """What the old engine still had in flight is worthless: the new one begins an epoch of its own."""
        self._link.reconnect()
        self._runner.end_epoch()
        self._link.send(self._hello)

    def _send_results(self) -> str | None:
        """Send what is there; returns what went wrong with a step, if anything did."""
        while True:
            try:
                result = self._runner.take()
            except RankLost as error:
                return str(error)
            except BaseException as error:  # whatever it was: the engine must learn that steps have no result
                return self._report("a step on the device", error)
            if result is None:
                return None
            if self._hello.rank == 0:  # the others' results are the same
                self._link.send(result)

    def _receive(self) -> str | None:
        """Sleep, then act on one message or on being woken; returns what went wrong with a plan, if anything did."""
        if self._link.wait(self._inbox.fileno()):
            self._inbox.rest()
            return None
        message = self._link.receive()
        match message:
            case StepPlan():
                try:
                    self._runner.submit(message)
                except PlanError as error:
                    return f"refused plan {message.step_id} of epoch {message.epoch}: {error}"
                except RankLost as error:
                    return f"step {message.step_id} of epoch {message.epoch}: {error}"
                except BaseException as error:  # as above
                    return self._report(f"step {message.step_id} of epoch {message.epoch}", error)
            case Begin():
                self._runner.begin(message.epoch)
        return None

    def _report(self, what: str, error: BaseException) -> str:
        """Log where an error came from; returns it in one line."""
        self._log("".join(traceback.format_exception(error)).rstrip())
        return f"{what} raised {type(error).__name__}: {error}"
