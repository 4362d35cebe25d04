"""Steps that go on while the host does: their order, their buffers, and the loop that sleeps meanwhile."""

import threading
from collections.abc import Iterator

import pytest
import torch
from support.device_runner import CountingModel, make_runner, tiny_config
from support.held_timeline import HeldTimeline
from support.host_device import HostTimeline
from support.loop_thread import HELLO, LoopThread
from support.worker_plans import SMALL, PlanMaker, admit
from support.worker_process import TIMEOUT_S, ScriptedEngine, ipc_address

from pagewire.wire.columns import unpack
from pagewire.wire.control import EngineRestarted, Stop
from pagewire.wire.plan import Begin, StepResult, WorkerFailed
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.cuda.runner import CudaRunner
from pagewire.worker.cuda.timeline import Waker
from pagewire.worker.loop import Inbox


def counting_runner(timeline: HeldTimeline, **options: object) -> CudaRunner:
    kv = KVCache(tiny_config(SMALL.vocab_size), SMALL.num_blocks, SMALL.block_size, torch.float32)
    return make_runner(CountingModel(SMALL.vocab_size), kv, SMALL, timeline=timeline, **options)


def first_plan(maker: PlanMaker) -> object:
    """A sequence that ends with 5 and decodes from the next plan on."""
    return maker.make(admits=[admit(0, [4, 5], list(range(10)))], chunks=[(0, 2)])


def test_results_come_in_order_and_each_from_its_own_memory() -> None:
    timeline, maker = HeldTimeline(), PlanMaker()
    runner = counting_runner(timeline)
    runner.submit(first_plan(maker))
    runner.submit(maker.make())
    assert runner.take() is None
    timeline.steps[1].release()
    assert runner.take() is None, "a step overtook the one before"
    timeline.steps[0].release()
    got = []
    for index in range(2, 12):
        result = runner.take()
        assert result is not None
        got.append(result)
        runner.submit(maker.make())
        timeline.steps[index].release()
    while (result := runner.take()) is not None:
        got.append(result)
    assert [result.step_id for result in got] == list(range(12))
    assert [unpack(result.tokens).tolist() for result in got] == [[6 + step] for step in range(12)]
    assert [(result.busy_us, result.idle_us) for result in got] == [(1000 * (s + 1), 1000 * s) for s in range(12)]
    assert all(step.has_ended for step in timeline.steps)


def test_a_third_step_waits_for_the_first() -> None:
    timeline, maker = HeldTimeline(), PlanMaker()
    runner = counting_runner(timeline)
    runner.submit(first_plan(maker))
    runner.submit(maker.make())
    third = threading.Thread(target=runner.submit, args=(maker.make(),))
    third.start()
    timeline.step(0).release()
    timeline.step(2)
    third.join(TIMEOUT_S)
    assert not third.is_alive()
    first = runner.take()
    assert first is not None
    assert (first.step_id, unpack(first.tokens).tolist()) == (0, [6])
    assert runner.take() is None


def test_a_new_epoch_waits_for_the_steps_of_the_old_one_and_drops_them() -> None:
    timeline, maker = HeldTimeline(), PlanMaker()
    runner = counting_runner(timeline)
    runner.submit(first_plan(maker))
    runner.submit(maker.make())
    for step in timeline.steps:
        step.release()
    runner.begin(2)
    assert runner.take() is None
    assert timeline.restarts == 2
    runner.submit(first_plan(PlanMaker(2)))
    timeline.steps[2].release()
    result = runner.take()
    assert result is not None
    assert (result.epoch, result.step_id) == (2, 0)


def test_host_times_add_up_to_the_wall() -> None:
    ticks = iter([10.0, 10.5, 10.75, 12.0, 20.0, 20.25])
    timeline = HostTimeline(ticks.__next__)
    steps = []
    for restart in (False, False, True):
        if restart:
            timeline.restart()
        steps.append(timeline.begin())
        steps[-1].end()
    assert [(step.busy_us, step.idle_us) for step in steps] == [(500_000, 0), (1_250_000, 250_000), (250_000, 0)]


class Worker(LoopThread):
    """Over a runner whose steps the test lets end."""

    def __init__(self, address: str) -> None:
        self.timeline = HeldTimeline()
        inbox = Inbox()
        super().__init__(address, counting_runner(self.timeline, watch=Waker(inbox.wake).watch), inbox)


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    with ipc_address() as address, ScriptedEngine(address) as engine:
        yield engine


def test_the_loop_launches_ahead_and_wakes_when_a_step_is_over(engine: ScriptedEngine) -> None:
    worker, maker = Worker(engine.address), PlanMaker()
    engine.receive()
    engine.send(Begin(1))
    engine.send(first_plan(maker))
    engine.send(maker.make())
    for index in range(8):
        worker.timeline.step(index + 1)  # launched though nothing of the step before has come back
        assert engine.silent_for(5)
        worker.timeline.step(index).release()
        result = engine.receive()
        assert isinstance(result, StepResult)
        assert (result.step_id, unpack(result.tokens).tolist()) == (index, [6 + index])
        engine.send(maker.make())
    worker.inbox.put(Stop())
    assert worker.join() is None


def test_a_step_that_fails_on_the_device_is_reported_and_final(engine: ScriptedEngine) -> None:
    worker, maker = Worker(engine.address), PlanMaker()
    engine.receive()
    engine.send(Begin(1))
    engine.send(first_plan(maker))
    engine.send(maker.make())
    worker.timeline.step(1)
    worker.timeline.step(0).release(RuntimeError("an illegal memory access"))
    message = "a step on the device raised RuntimeError: an illegal memory access"
    assert engine.receive() == WorkerFailed(message)
    assert worker.join() == message
    assert any("Traceback" in line for line in worker.log)


def test_a_new_engine_finds_a_worker_without_a_past(engine: ScriptedEngine) -> None:
    worker, maker = Worker(engine.address), PlanMaker()
    engine.receive()
    engine.send(Begin(1))
    engine.send(first_plan(maker))
    engine.send(maker.make())
    for index in range(2):
        worker.timeline.step(index)
    worker.inbox.put(EngineRestarted(incarnation=2))
    for index in range(2):
        worker.timeline.step(index).release()
    message = engine.receive()
    while isinstance(message, StepResult):
        message = engine.receive()
    assert message == HELLO
    engine.send(Begin(2))
    engine.send(first_plan(PlanMaker(2)))
    worker.timeline.step(2).release()
    result = engine.receive()
    assert isinstance(result, StepResult)
    assert (result.epoch, result.step_id, unpack(result.tokens).tolist()) == (2, 0, [6])
    worker.inbox.put(Stop())
    assert worker.join() is None
