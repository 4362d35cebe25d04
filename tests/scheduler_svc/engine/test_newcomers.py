"""A tenant that comes while another has every slot is served at once; what leaves for it goes on to the same token."""

from support.engine_process import VOCAB_SIZE
from support.scheduler_world import World

from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.wire.requests import FinishKind

SLOTS = 3


def make_world(**changes: int) -> World:
    limits = {"num_blocks": 60, **changes}
    return World(
        SchedulerConfig(
            max_num_seqs=SLOTS,
            max_queued=20,
            max_queued_tokens=400,
            max_model_len=60,
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


def greedy(world: World, count: int = SLOTS + 4, priority: int = 0) -> list[int]:
    """Its sequences, which take every slot, and more that wait."""
    asked = [world.submit([5 + i, 6, 7], 40, ignore_eos=True, tenant="greedy", priority=priority) for i in range(count)]
    run(world, 6)
    return asked


def running(world: World) -> set[int]:
    return {sequence.key.handle for sequence in world.scheduler._batch.slots.running()}


def ends_well(world: World) -> None:
    world.drain()
    assert {sequence.ended for sequence in world.sequences.values()} == {FinishKind.LENGTH}
    world.check_end()


def test_the_first_of_a_tenant_takes_the_place_of_the_last_that_came() -> None:
    world = make_world()
    asked = greedy(world)
    assert running(world) == set(asked[:SLOTS])
    modest = world.submit([1, 2, 3], 6, ignore_eos=True, tenant="modest")
    run(world, 1)
    assert running(world) == {*asked[: SLOTS - 1], modest}
    # What left comes before those of its tenant that have not run.
    while world.sequences[modest].ended is None:
        run(world, 1)
    run(world, 1)
    assert running(world) == set(asked[:SLOTS])
    ends_well(world)


def test_a_second_one_waits_for_its_turn() -> None:
    world = make_world()
    greedy(world)
    first = world.submit([1, 2], 20, ignore_eos=True, tenant="modest")
    second = world.submit([3, 4], 20, ignore_eos=True, tenant="modest")
    run(world, 4)
    assert first in running(world)
    assert second not in running(world)
    assert world.scheduler.counters.preemptions == 1
    ends_well(world)


def test_nobody_leaves_where_each_tenant_has_one() -> None:
    world = make_world()
    for tenant in ("one", "two", "three"):
        world.submit([len(tenant), 5], 30, ignore_eos=True, tenant=tenant)
    run(world, 4)
    world.submit([1, 2], 5, ignore_eos=True, tenant="modest")
    run(world, 4)
    assert world.scheduler.counters.preemptions == 0
    ends_well(world)


def test_a_higher_priority_keeps_its_slots() -> None:
    world = make_world()
    greedy(world, SLOTS, priority=1)
    world.submit([1, 2], 5, ignore_eos=True, tenant="modest")
    run(world, 4)
    assert world.scheduler.counters.preemptions == 0
    ends_well(world)


def test_one_that_finds_no_memory_displaces_nobody_again() -> None:
    world = make_world(num_blocks=15)
    greedy(world, SLOTS)
    modest = world.submit(list(range(20, 70)), 6, ignore_eos=True, tenant="modest")
    run(world, 10)
    assert modest not in running(world)
    assert world.scheduler.counters.preemptions == 1
    ends_well(world)
