"""Paused sequences: they hold nothing, hold nobody up, and go on to the very tokens they would have had."""

import pytest
from support.content_worker import expected_output
from support.engine_process import VOCAB_SIZE, PlayedWorker, engine_process, registered, submit, tokens_of
from support.scheduler_world import World

from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.wire.columns import pack
from pagewire.wire.plan import StepPlan
from pagewire.wire.requests import AbortRequest, Answer, FinishKind, Load, Pause, RejectKind, Resume, TokenBatch


def make_world(**changes: int) -> World:
    limits = {"max_num_seqs": 2, "max_queued": 3, "max_queued_tokens": 40, "num_blocks": 10, "max_model_len": 40}
    limits |= changes
    return World(
        SchedulerConfig(
            max_num_batched_tokens=32,
            max_prefill_tokens_per_step=16,
            vocab_size=VOCAB_SIZE,
            eos_token_ids=(0,),
            block_size=4,
            enable_prefix_caching=True,
            **limits,
        ),
        depth=2,
    )


def run(world: World, turns: int) -> None:
    for _ in range(turns):
        world.plan()
        world.deliver()


def test_its_memory_is_others_while_it_is_paused() -> None:
    world = make_world()
    paused = world.submit([1, 2, 3, 4, 5], 25, ignore_eos=True)
    run(world, 8)
    assert world.scheduler.blocks.num_used >= 3
    world.pause(paused)
    assert world.scheduler.blocks.num_used == 0
    assert not world.scheduler.has_work
    large = world.submit(list(range(20, 50)), 10, ignore_eos=True)  # all ten blocks
    world.drain()
    assert world.sequences[large].ended is FinishKind.LENGTH
    got = len(world.sequences[paused].got)
    assert 0 < got < 25
    world.resume(paused)
    world.drain()
    assert world.sequences[paused].ended is FinishKind.LENGTH
    assert world.sequences[paused].starts == 1
    world.check_end()


def test_it_takes_no_room_in_the_queue_and_is_let_in_again_where_there_is_none() -> None:
    world = make_world(max_num_seqs=1)
    running = world.submit([1, 2], 30, ignore_eos=True)
    run(world, 3)
    waits = [world.submit([3 + i], 5, ignore_eos=True) for i in range(3)]
    world.submit([9], 5)
    assert [each.kind for each in world.rejections] == [RejectKind.QUEUE_FULL]
    world.pause(running)
    world.pause(waits[0])
    world.submit([10], 5, ignore_eos=True)
    assert len(world.rejections) == 1
    world.resume(running)
    world.resume(waits[0])
    assert world.scheduler.num_waiting > 3
    # What had begun comes before what had not, and those in the order in which they came.
    run(world, 1)
    assert [s.key.handle for s in world.scheduler._batch.slots.running()] == [running]
    world.drain()
    world.check_end()


def test_its_time_to_wait_ends_only_while_it_waits() -> None:
    world = make_world(max_num_seqs=1)
    world.submit([1, 2], 30, ignore_eos=True)
    run(world, 2)
    hasty = world.submit([3], 5, max_queue_time_s=1.0)
    world.pause(hasty)
    world.expire(5.0)
    assert not world.rejections
    world.resume(hasty)
    world.expire(0.0)
    assert [each.handle for each in world.rejections] == [hasty]


def test_lost_workers_leave_it_paused_and_one_with_less_memory_ends_it() -> None:
    world = make_world()
    short = world.submit([1, 2, 3], 30, ignore_eos=True)
    long = world.submit([4, 5, 6, 7, 8, 9, 10, 11, 12], 20, ignore_eos=True)
    run(world, 6)
    world.pause(short)
    world.pause(long)
    world.lose_worker()
    world.check()
    assert world.scheduler.num_paused == 2
    world.replace_worker(2)
    assert world.sequences[long].ended is FinishKind.NO_ROOM
    assert world.sequences[short].ended in (None, FinishKind.NO_ROOM)
    world.resume_all()
    world.drain()
    world.check_end()


def test_suspects_of_whom_all_are_paused_hold_nobody_up() -> None:
    world = make_world(max_num_seqs=4)
    suspects = [world.submit([1 + i], 8, ignore_eos=True) for i in range(2)]
    for _ in range(2):
        world.plan()
        world.lose_worker()
    for suspect in suspects:
        world.pause(suspect)
    other = world.submit([9, 9], 4, ignore_eos=True)
    world.drain()
    assert world.sequences[other].ended is FinishKind.LENGTH
    world.resume(suspects[1])
    world.drain()
    assert world.sequences[suspects[1]].ended is FinishKind.LENGTH
    world.resume(suspects[0])
    world.drain()
    world.check_end()


@pytest.mark.parametrize("handles", [pack([1]), b"abc"])
def test_a_frontend_pauses_and_resumes_over_the_wire(handles: bytes) -> None:
    """And handles that are none change nothing."""
    prompt, num_tokens = [5, 6, 7], 30
    is_torn = handles == b"abc"
    with engine_process() as engine:
        frontend = registered(engine)
        worker = PlayedWorker(engine.workers)
        frontend.send(submit(1, prompt, num_tokens))
        worker.answer(4)
        frontend.send(Pause(handles))
        frontend.send(AbortRequest(7, "nobody's"))
        got: list[int] = []

        def collect(message: object) -> None:
            if isinstance(message, TokenBatch):
                got.extend(tokens_of(message.tokens))

        def rests(message: object) -> bool:
            collect(message)
            return isinstance(message, Load) and message.paused == 1

        def answered(message: object) -> bool:
            collect(message)
            return isinstance(message, Answer)

        frontend.until(answered)
        if not is_torn:
            while worker.peer.socket.poll(200):  # plans that were on their way
                worker.answer_one()
            load = frontend.until(rests)
            assert isinstance(load, Load)
            assert (load.running, load.waiting, load.used_blocks) == (0, 0, 0)
            assert len(got) < num_tokens
            frontend.send(Resume(handles))
        while len(got) < num_tokens:
            if worker.peer.socket.poll(20):
                message = worker.peer.receive()
                assert isinstance(message, StepPlan)
                worker.run(message)
            while frontend.socket.poll(0):
                collect(frontend.receive())
        assert got == expected_output(prompt, 1, num_tokens, frozenset(), VOCAB_SIZE)
