"""A scheduler recounted: sequences, slots and blocks, from the tables of its parts."""

from collections import Counter

from pagewire.scheduler_svc.engine.scheduler import Scheduler
from pagewire.scheduler_svc.engine.sequence import NO_SLOT
from pagewire.wire.requests import CACHED_ALONE, MOST_HOLDERS


def check_uses(scheduler: Scheduler, held: "Counter[int]") -> None:
    """What is said of blocks is what their tables say, in whatever pieces it is read. Raises AssertionError."""
    blocks = scheduler.blocks
    uses = blocks.uses(0, blocks.num_blocks + 5)
    assert len(uses) == blocks.num_blocks
    assert uses == blocks.uses(0, 3) + blocks.uses(3, blocks.num_blocks)
    assert {block: use for block, use in enumerate(uses) if 0 < use <= MOST_HOLDERS} == held
    assert uses.count(CACHED_ALONE) == blocks.num_cached


def check_integrity(scheduler: Scheduler) -> None:
    """Raises AssertionError."""
    config, slots = scheduler.config, scheduler._batch.slots
    running = slots.running()
    waiting = list(scheduler._waiting)
    scheduler.blocks.check_integrity(running)
    check_uses(scheduler, Counter(block for sequence in running for block in sequence.blocks))
    for tenant in {None, *(s.tenant for s in waiting)}:
        mine = [len(s.tokens) for s in waiting if tenant in (None, s.tenant)]
        counted = scheduler._waiting._total if tenant is None else scheduler._waiting._waits[tenant]
        assert counted == (len(mine), sum(mine)), f"what waits of {tenant} is miscounted"
    assert {id(s) for s in running + waiting} == {id(s) for s in scheduler._sequences.values()}, "a sequence is lost"
    assert len(running) + slots.num_free == config.max_num_seqs, "a slot is lost"
    assert all(not s.blocks and s.slot == NO_SLOT for s in waiting), "a waiting one holds memory"
    for sequence in running:
        planned, received = slots.planned[sequence.slot], slots.received[sequence.slot]
        assert planned <= slots.capacity[sequence.slot] == len(sequence.blocks) * config.block_size
        assert received <= sequence.max_len, f"{sequence.key} went past its limit"
