"""A scheduler recounted: sequences, slots and blocks, from the tables of its parts."""

from collections import Counter

from pagewire.scheduler_svc.engine.queue_level import Amount
from pagewire.scheduler_svc.engine.scheduler import Scheduler
from pagewire.scheduler_svc.engine.sequence import NO_SLOT, Sequence
from pagewire.scheduler_svc.engine.wait_queue import WaitQueue
from pagewire.wire.requests import CACHED_ALONE, MOST_HOLDERS


def check_uses(scheduler: Scheduler, held: "Counter[int]") -> None:
    """What is said of blocks is what their tables say, in whatever pieces it is read. Raises AssertionError."""
    blocks = scheduler.blocks
    uses = blocks.uses(0, blocks.num_blocks + 5)
    assert len(uses) == blocks.num_blocks
    assert uses == blocks.uses(0, 3) + blocks.uses(3, blocks.num_blocks)
    assert {block: use for block, use in enumerate(uses) if 0 < use <= MOST_HOLDERS} == held
    assert uses.count(CACHED_ALONE) == blocks.num_cached


def check_amounts(queue: WaitQueue) -> None:
    """What waits, in all, of each tenant and on each level, is what is counted. Raises AssertionError."""
    waiting = list(queue)
    levels = {
        (priority, name): amount for priority, level in queue._levels.items() for name, amount in level.waits.items()
    }
    assert queue._total == _amount(waiting)
    assert queue._waits == {
        name: _amount([s for s in waiting if s.tenant == name]) for name in {s.tenant for s in waiting}
    }
    places = {id(s): (s.priority, None if s.started else s.tenant) for s in waiting}
    assert levels == {place: _amount([s for s in waiting if places[id(s)] == place]) for place in set(places.values())}


def _amount(sequences: list[Sequence]) -> Amount:
    return Amount(len(sequences), sum(len(sequence.tokens) for sequence in sequences))


def check_integrity(scheduler: Scheduler) -> None:
    """Raises AssertionError."""
    config, slots = scheduler.config, scheduler._batch.slots
    running = slots.running()
    waiting = list(scheduler._waiting)
    scheduler.blocks.check_integrity(running)
    check_uses(scheduler, Counter(block for sequence in running for block in sequence.blocks))
    check_amounts(scheduler._waiting)
    assert {id(s) for s in running + waiting} == {id(s) for s in scheduler._sequences.values()}, "a sequence is lost"
    assert len(running) + slots.num_free == config.max_num_seqs, "a slot is lost"
    assert all(not s.blocks and s.slot == NO_SLOT for s in waiting), "a waiting one holds memory"
    for sequence in running:
        planned, received = slots.planned[sequence.slot], slots.received[sequence.slot]
        assert planned <= slots.capacity[sequence.slot] == len(sequence.blocks) * config.block_size
        assert received <= sequence.max_len, f"{sequence.key} went past its limit"
