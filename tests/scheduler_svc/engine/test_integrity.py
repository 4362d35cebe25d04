"""The engine recounts itself: whatever is wrong is named, and ends the process."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.engine_process import LIMIT_S, PlayedWorker, engine_process, registered, submit
from support.scheduler_world import World

from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.scheduler_svc.engine.open_sequences import IntegrityError
from pagewire.scheduler_svc.engine.queue_bounds import Amount
from pagewire.scheduler_svc.engine.scheduler import Scheduler
from pagewire.scheduler_svc.engine.sequence import Sequence, SequenceKey, SequenceStatus
from pagewire.wire.control import Failed, WorkerLost

BROKEN = str(Path(__file__).parents[2] / "support/broken_engine.py")


def busy() -> World:
    """Two sequences run, one of them shares the other's prompt, one is in its prompt, two wait and one is paused."""
    world = World(
        SchedulerConfig(
            max_num_seqs=4,
            max_num_batched_tokens=16,
            max_prefill_tokens_per_step=8,
            max_model_len=64,
            max_queued=8,
            max_queued_tokens=1000,
            vocab_size=101,
            eos_token_ids=(0,),
            num_blocks=32,
            block_size=4,
            enable_prefix_caching=True,
        ),
        depth=2,
    )
    world.submit(list(range(1, 12)), 30, ignore_eos=True)
    ended = world.submit(list(range(20, 30)), 1, ignore_eos=True)
    while world.sequences[ended].ended is None:
        world.plan()
        world.deliver()
    world.submit(list(range(1, 12)), 30, ignore_eos=True)
    for _ in range(4):
        world.plan()
        world.deliver()
    world.submit(list(range(40, 70)), 30, ignore_eos=True)
    world.plan()
    world.deliver()
    paused = world.submit([1, 2], 5)
    world.pause(paused)
    world.submit([3], 5)
    world.submit([4], 5, tenant="one", priority=2)
    return world


def running(scheduler: Scheduler) -> list[Sequence]:
    return scheduler._batch.slots.running()


def lose_block(scheduler: Scheduler) -> None:
    scheduler.blocks._pool.take()


def free_twice(scheduler: Scheduler) -> None:
    scheduler.blocks._pool._free[running(scheduler)[0].blocks[0]] = None


def share_too_often(scheduler: Scheduler) -> None:
    scheduler.blocks._pool.share(running(scheduler)[0].blocks[0])


def hold_twice(scheduler: Scheduler) -> None:
    first = running(scheduler)[0]
    first.blocks[1] = first.blocks[0]


def forget_half_of_a_hash(scheduler: Scheduler) -> None:
    scheduler.blocks._cache._block_of.popitem()


def miscount_cached(scheduler: Scheduler) -> None:
    scheduler.blocks._num_idle_cached -= 1


def lose_slot(scheduler: Scheduler) -> None:
    scheduler._batch.slots._free.pop()


def mistake_slot(scheduler: Scheduler) -> None:
    running(scheduler)[0].slot = running(scheduler)[1].slot


def plan_past_the_table(scheduler: Scheduler) -> None:
    scheduler._batch.slots.planned[running(scheduler)[0].slot] += 20


def receive_too_many(scheduler: Scheduler) -> None:
    scheduler._batch.slots.received[running(scheduler)[0].slot] += 20


def forget_prefill(scheduler: Scheduler) -> None:
    scheduler._batch._prefilling.clear()


def lose_sequence(scheduler: Scheduler) -> None:
    del scheduler._open._all[running(scheduler)[0].key]


def mistake_status(scheduler: Scheduler) -> None:
    running(scheduler)[0].status = SequenceStatus.WAITING


def give_memory_to_paused(scheduler: Scheduler) -> None:
    next(iter(scheduler._open._paused.values())).blocks.append(scheduler.blocks._pool.take())


def miscount_queue(scheduler: Scheduler) -> None:
    scheduler._waiting._bounds.total = Amount(2, 1)


def miscount_tenant(scheduler: Scheduler) -> None:
    scheduler._waiting._bounds.by_tenant["one"] = Amount(1, 2)


def miscount_level(scheduler: Scheduler) -> None:
    scheduler._waiting._levels[2].waits["two"] = Amount(1, 1)


@pytest.mark.parametrize(
    ("corrupt", "told"),
    [
        (lose_block, "blocks are referenced, and"),
        (free_twice, "blocks are free, of 32"),
        (share_too_often, "which is not how often it is referenced"),
        (hold_twice, "holds a block twice"),
        (forget_half_of_a_hash, "not one for each"),
        (miscount_cached, "blocks are cached and free, and"),
        (lose_slot, "are free, and"),
        (mistake_slot, "and says that it has"),
        (plan_past_the_table, "tokens planned and room for"),
        (receive_too_many, "tokens received and"),
        (forget_prefill, "which are not those that do not decode"),
        (lose_sequence, "sequences are open, of which 3 are running, 2 are waiting, 1 are paused"),
        (mistake_status, "and says that it is waiting"),
        (give_memory_to_paused, "is paused and holds 1 blocks"),
        (miscount_queue, "of which Amount"),
        (miscount_tenant, "of which Amount"),
        (miscount_level, "of levels"),
    ],
)
def test_what_is_wrong_is_named(corrupt: Callable[[Scheduler], None], told: str) -> None:
    world = busy()
    world.check()
    assert len(running(world.scheduler)) == 3
    corrupt(world.scheduler)
    with pytest.raises(IntegrityError, match=told):
        world.scheduler.check_integrity()


def test_a_sequence_that_nobody_knows_any_more_is_a_violation() -> None:
    world = busy()
    lost = world.scheduler._open._all.pop(SequenceKey(3, 0))
    world.scheduler._open._all[SequenceKey(3, 99)] = lost
    with pytest.raises(IntegrityError, match="is among those running"):
        world.scheduler.check_integrity()


def test_an_idle_engine_that_lost_a_block_ends_and_says_so() -> None:
    with engine_process((BROKEN, "engine", "leak")) as engine:
        frontend = registered(engine)
        worker = PlayedWorker(engine.workers)
        frontend.send(submit(1, [5, 6, 7], 2))
        worker.answer(2)
        told = engine.told(Failed)
        assert "3 invariants are violated: 1 blocks are referenced, and 0 stand in tables" in told.message
        assert engine.process.wait(LIMIT_S) == 1


def test_a_recovered_engine_whose_queue_miscounts_ends_and_says_so() -> None:
    with engine_process((BROKEN, "engine", "miscount")) as engine:
        frontend = registered(engine)
        worker = PlayedWorker(engine.workers)
        frontend.send(submit(1, [5, 6, 7], 30))
        worker.peer.receive()  # Begin
        worker.peer.receive()  # a plan, so it runs
        engine.command(WorkerLost(0))
        assert "of which Amount(sequences=1, tokens=4) is counted" in engine.told(Failed).message
        assert engine.process.wait(LIMIT_S) == 1
