"""Block-seconds: exact by arithmetic, whatever happens to the sequences that hold the blocks."""

import pytest
from support.scheduler_world import World

from pagewire.scheduler_svc.engine.block_ledger import BlockLedger
from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.wire.measures import MAX_TENANTS, OTHER_TENANTS


def test_blocks_count_for_as_long_as_they_are_held() -> None:
    ledger = BlockLedger()
    ledger.pass_time(10.0)
    ledger.take("ann", 3)
    ledger.pass_time(12.0)
    ledger.take("ann", 1)
    ledger.take("bob", 5)
    assert ledger.block_seconds() == {"ann": 6.0, "bob": 0.0}
    ledger.pass_time(13.0)
    ledger.give_back("ann", 4)
    ledger.pass_time(20.0)
    assert ledger.block_seconds() == {"ann": 10.0, "bob": 40.0}
    assert (ledger.held("ann"), ledger.held("bob")) == (0, 5)


def test_a_clock_that_goes_back_charges_nothing_twice() -> None:
    ledger = BlockLedger()
    ledger.pass_time(5.0)
    ledger.take("ann", 2)
    for now_s in (7.0, 6.0, 7.0):
        ledger.pass_time(now_s)
        assert ledger.block_seconds() == {"ann": 4.0}


def test_giving_back_what_was_not_taken_is_a_bug() -> None:
    ledger = BlockLedger()
    ledger.take("ann", 1)
    with pytest.raises(AssertionError, match="'ann' gave back more"):
        ledger.give_back("ann", 2)


def test_tenants_beyond_the_limit_count_together() -> None:
    ledger = BlockLedger()
    for number in range(10 * MAX_TENANTS):
        ledger.take(f"tenant-{number}", 1)
    ledger.pass_time(1.0)
    block_s = ledger.block_seconds()
    assert len(block_s) == MAX_TENANTS + 1
    assert block_s[OTHER_TENANTS] == 9 * MAX_TENANTS


def test_a_sequence_is_charged_from_its_admission_to_its_end() -> None:
    """Beside the random histories of `test_scheduler_properties`, which compare what is held after every event."""
    world = World(
        SchedulerConfig(
            max_num_seqs=4,
            max_num_batched_tokens=32,
            max_prefill_tokens_per_step=16,
            max_model_len=64,
            max_queued=8,
            max_queued_tokens=1000,
            vocab_size=101,
            eos_token_ids=(0,),
            num_blocks=32,
            block_size=4,
            enable_prefix_caching=True,
        ),
        depth=1,
    )
    world.submit([1, 2, 3, 4, 5], 3, ignore_eos=True, tenant="ann")
    world.now_s = 1.0
    world.plan()
    assert world.ledger.held("ann") == 2
    world.deliver()
    world.now_s = 4.0
    world.plan()
    world.deliver()
    assert world.ledger.block_seconds() == {"ann": 6.0}
    world.now_s = 5.0
    world.plan()
    world.deliver()  # the last token: the blocks come free
    world.check_end()
    world.ledger.pass_time(100.0)
    assert world.ledger.block_seconds() == {"ann": 8.0}
