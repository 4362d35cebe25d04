"""A scheduler recounted: sequences, slots and blocks, from the tables of its parts."""

from pagewire.scheduler_svc.engine.scheduler import Scheduler
from pagewire.scheduler_svc.engine.sequence import NO_SLOT


def check_integrity(scheduler: Scheduler) -> None:
    """Raises AssertionError."""
    config, slots = scheduler.config, scheduler._batch.slots
    running = slots.running()
    waiting = list(scheduler._waiting)
    scheduler.blocks.check_integrity(running)
    assert {id(s) for s in running + waiting} == {id(s) for s in scheduler._sequences.values()}, "a sequence is lost"
    assert len(running) + slots.num_free == config.max_num_seqs, "a slot is lost"
    assert all(not s.blocks and s.slot == NO_SLOT for s in waiting), "a waiting one holds memory"
    for sequence in running:
        planned, received = slots.planned[sequence.slot], slots.received[sequence.slot]
        assert planned <= slots.capacity[sequence.slot] == len(sequence.blocks) * config.block_size
        assert received <= sequence.max_len, f"{sequence.key} went past its limit"
