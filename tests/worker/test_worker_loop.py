"""The step loop with a runner that is scripted, over a real link to a scripted engine."""

from collections.abc import Iterator

import numpy as np
import pytest
from support.loop_thread import HELLO, LoopThread
from support.worker_plans import PlanMaker
from support.worker_process import ScriptedEngine, ipc_address

from pagewire.wire.control import Stop
from pagewire.wire.launch import Endpoint
from pagewire.wire.plan import Begin, StepPlan, StepResult, WorkerFailed
from pagewire.worker.immediate import ImmediateRunner, Sampled
from pagewire.worker.link import EngineLink, LinkError
from pagewire.worker.loop import Inbox


class ScriptedRunner:
    """Answers every plan with its step id, or raises what it was given."""

    def __init__(self, errors: dict[int, BaseException]) -> None:
        self._errors = errors

    def begin(self, epoch: int) -> None:
        pass

    def end_epoch(self) -> None:
        pass

    def run(self, plan: StepPlan) -> Sampled:
        if plan.step_id in self._errors:
            raise self._errors[plan.step_id]
        return Sampled(np.asarray([plan.step_id], np.int32))


def running_loop(
    address: str, *, errors: dict[int, BaseException], clock_ticks: list[float] | None = None
) -> LoopThread:
    """A loop whose runner reads its clock from a list."""
    clock = iter(clock_ticks).__next__ if clock_ticks else lambda: 0.0
    return LoopThread(address, ImmediateRunner(ScriptedRunner(errors), clock), Inbox())


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    with ipc_address() as address, ScriptedEngine(address) as engine:
        yield engine


class Panic(BaseException):
    """As libraries written in Rust raise it."""


@pytest.mark.parametrize("kind", [RuntimeError, Panic])
def test_a_step_that_raises_is_reported_and_final(engine: ScriptedEngine, kind: type[BaseException]) -> None:
    loop = running_loop(engine.address, errors={1: kind("not enough memory")})
    assert engine.receive() == HELLO
    engine.send(Begin(3))
    maker = PlanMaker(3)
    for _ in range(3):
        engine.send(maker.make())
    assert isinstance(engine.receive(), StepResult)
    message = f"step 1 of epoch 3 raised {kind.__name__}: not enough memory"
    assert engine.receive() == WorkerFailed(message)
    assert loop.join() == message
    assert any("Traceback" in line and "not enough memory" in line for line in loop.log)
    assert engine.silent_for(50)


def test_busy_and_idle_time_add_up_to_the_wall(engine: ScriptedEngine) -> None:
    ticks = [10.0, 10.5, 10.75, 12.0, 12.0, 12.125, 20.0, 20.25]
    loop = running_loop(engine.address, errors={}, clock_ticks=ticks)
    engine.receive()
    times = []
    for epoch, steps in ((1, 3), (2, 1)):
        engine.send(Begin(epoch))
        maker = PlanMaker(epoch)
        for _ in range(steps):
            engine.send(maker.make())
            result = engine.receive()
            assert isinstance(result, StepResult)
            times.append((result.busy_us, result.idle_us))
    assert times == [(500_000, 0), (1_250_000, 250_000), (125_000, 0), (250_000, 0)]
    loop.inbox.put(Stop())
    assert loop.join() is None


def test_commands_wake_a_loop_that_waits(engine: ScriptedEngine) -> None:
    loop = running_loop(engine.address, errors={})
    engine.receive()
    loop.inbox.put(Stop())
    assert loop.join() is None


def test_the_link_counts_what_it_drops_and_bounds_what_it_queues(engine: ScriptedEngine) -> None:
    link = EngineLink(Endpoint(address=engine.address), "0:1")
    link.send(HELLO)
    engine.receive()
    engine.send_frames(b"garbage")
    engine.send_frames(b"two", b"frames")
    engine.send(Begin(1))
    inbox = Inbox()
    while (message := link.receive()) is None:
        link.wait(inbox.fileno())
    assert message == Begin(1)
    assert link.dropped_frames == 2
    link.close(flush_s=0)

    with ipc_address() as nowhere:
        link = EngineLink(Endpoint(address=nowhere), "0:1")
        for _ in range(64):
            link.send(HELLO)
        with pytest.raises(LinkError, match="64 messages wait for an engine that reads none"):
            link.send(HELLO)
        link.reconnect()
        link.send(HELLO)
        link.close(flush_s=0)


def test_a_full_wake_up_pipe_loses_no_command() -> None:
    inbox = Inbox()
    for _ in range(70_000):  # a pipe holds 65,536 bytes
        inbox.put(Stop())
    inbox.rest()
    count = 0
    while inbox.take() is not None:
        count += 1
    assert count == 70_000
