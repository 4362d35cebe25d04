"""A scheduler recounted: by itself, and what it says of its blocks against their tables."""

from collections import Counter

from pagewire.scheduler_svc.engine.scheduler import Scheduler
from pagewire.wire.requests import CACHED_ALONE, MOST_HOLDERS


def check_uses(scheduler: Scheduler) -> None:
    """What is said of blocks is what their tables say, in whatever pieces it is read. Raises AssertionError."""
    blocks = scheduler.blocks
    held = Counter(block for sequence in scheduler._batch.slots.running() for block in sequence.blocks)
    uses = blocks.uses(0, blocks.num_blocks + 5)
    assert len(uses) == blocks.num_blocks
    assert uses == blocks.uses(0, 3) + blocks.uses(3, blocks.num_blocks)
    assert {block: use for block, use in enumerate(uses) if 0 < use <= MOST_HOLDERS} == held
    assert uses.count(CACHED_ALONE) == blocks.num_cached


def check_ledger(scheduler: Scheduler) -> None:
    """Each tenant is charged for as many blocks as its sequences hold. Raises AssertionError."""
    held: Counter[str] = Counter()
    for sequence in scheduler._batch.slots.running():
        held[sequence.tenant] += len(sequence.blocks)
    if scheduler._ledger is not None:
        assert {name: count for name, count in scheduler._ledger._held.items() if count} == held


def check_integrity(scheduler: Scheduler) -> None:
    """Raises AssertionError, or the scheduler's own IntegrityError."""
    scheduler.check_integrity()
    check_uses(scheduler)
    check_ledger(scheduler)
