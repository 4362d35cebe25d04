"""Counts that outlive processes, and tenants' names that are never too many."""

import msgspec

from pagewire.scheduler_svc.metrics.totals import ServerTotals
from pagewire.wire.measures import (
    MAX_TENANTS,
    OTHER_TENANTS,
    SECONDS,
    EngineCounts,
    EngineGauges,
    EngineMeasured,
    FrontendCounts,
    FrontendMeasured,
    Histogram,
    TenantUse,
)

GAUGES = EngineGauges(
    is_ready=True,
    running=3,
    waiting=2,
    waiting_tokens=70,
    paused=1,
    used_blocks=4,
    cached_blocks=5,
    total_blocks=16,
    block_size=32,
    worker_idle_ratio=0.25,
)


def frontend_report(completed: int, tenants: dict[str, TenantUse] | None = None) -> FrontendMeasured:
    """Of a frontend whose calls each took half a second to the first token."""
    first = Histogram.empty(SECONDS)
    first.observe(0.5, completed)
    counts = FrontendCounts(requests={"completed": completed}, tenants=tenants or {}, time_to_first_token=first)
    return FrontendMeasured(counts, 2)


def test_a_frontend_that_begins_anew_adds_to_what_the_one_before_it_had_counted() -> None:
    totals = ServerTotals()
    for index in (0, 1):
        totals.started("frontend", index, 0)
    totals.measured(0, frontend_report(3))
    totals.measured(1, frontend_report(10))
    totals.measured(0, frontend_report(5))  # all of it again, and two more
    assert totals.snapshot().frontends.requests["completed"] == 15
    assert totals.snapshot().open_requests == 4
    totals.started("frontend", 0, 1)
    assert totals.snapshot().frontends.requests["completed"] == 15
    assert totals.snapshot().open_requests == 2
    totals.measured(0, frontend_report(1))
    snapshot = totals.snapshot()
    assert snapshot.frontends.requests["completed"] == 16
    assert sum(snapshot.frontends.time_to_first_token.counts) == 16
    assert snapshot.frontends.time_to_first_token.total == 8.0
    assert snapshot.restarts == {"engine": 0, "worker": 0, "frontend": 1}


def test_an_engine_that_begins_anew_has_no_gauges_until_it_says_something() -> None:
    totals = ServerTotals()
    totals.started("engine", 0, 0)
    totals.measured(0, EngineMeasured(EngineCounts(output_tokens=7, block_seconds={"ann": 1.5}), GAUGES))
    assert totals.snapshot().gauges == GAUGES
    totals.started("engine", 0, 1)
    assert totals.snapshot().gauges is None
    assert totals.snapshot().engine.output_tokens == 7
    totals.measured(0, EngineMeasured(EngineCounts(output_tokens=1, block_seconds={"ann": 2.0, "bob": 1.0}), GAUGES))
    assert totals.snapshot().engine.output_tokens == 8
    assert totals.snapshot().engine.block_seconds == {"ann": 3.5, "bob": 1.0}


def test_an_engine_that_stands_still_has_no_gauges_and_its_counts_stay() -> None:
    now_s = [100.0]
    totals = ServerTotals(5.0, lambda: now_s[0])
    report = EngineMeasured(EngineCounts(output_tokens=7), GAUGES)
    totals.measured(0, report)
    before = totals.version
    now_s[0] = 105.0
    assert (totals.snapshot().gauges, totals.version) == (GAUGES, before)
    now_s[0] = 105.5
    assert totals.version != before, "what was answered with its gauges is kept for ever"
    snapshot = totals.snapshot()
    assert (snapshot.gauges, snapshot.engine.output_tokens) == (None, 7)
    totals.measured(0, report)
    assert totals.snapshot().gauges == GAUGES


def test_an_engine_that_has_ended_has_no_gauges() -> None:
    totals = ServerTotals()
    totals.measured(0, EngineMeasured(EngineCounts(output_tokens=7), GAUGES))
    before = totals.version
    totals.ended("frontend")
    assert (totals.snapshot().gauges, totals.version) == (GAUGES, before)
    totals.ended("engine")
    assert totals.version != before
    assert (totals.snapshot().gauges, totals.snapshot().engine.output_tokens) == (None, 7)


def test_the_loss_of_several_ranks_counts_once() -> None:
    totals = ServerTotals()
    for incarnation in (0, 1):
        for rank in range(4):
            totals.started("worker", rank, incarnation)
    assert totals.snapshot().restarts["worker"] == 1


def test_a_snapshot_stays_what_it_was() -> None:
    totals = ServerTotals()
    totals.measured(0, frontend_report(3, {"ann": TenantUse(3)}))
    before = totals.snapshot()
    said = msgspec.json.encode(before)
    totals.measured(0, frontend_report(4, {"ann": TenantUse(4)}))
    assert msgspec.json.encode(before) == said
    assert totals.snapshot().frontends.tenants["ann"].requests == 4


def test_of_a_hundred_thousand_tenants_those_beyond_the_limit_count_together() -> None:
    totals = ServerTotals()
    names = [f"tenant-{number}" for number in range(100_000)]
    for start in range(0, len(names), MAX_TENANTS):
        # Each frontend knows others, as those that are started again come to do.
        index = start // MAX_TENANTS
        totals.started("frontend", index, 0)
        totals.measured(index, frontend_report(0, {name: TenantUse(1, 10) for name in names[start:][:MAX_TENANTS]}))
    tenants = totals.snapshot().frontends.tenants
    assert len(tenants) == MAX_TENANTS + 1
    assert tenants["tenant-7"] == TenantUse(1, 10)
    assert tenants[OTHER_TENANTS] == TenantUse(100_000 - MAX_TENANTS, 10 * (100_000 - MAX_TENANTS))
    totals.measured(0, EngineMeasured(EngineCounts(block_seconds={"tenant-7": 1.0, "tenant-99999": 2.0}), GAUGES))
    assert totals.snapshot().engine.block_seconds == {"tenant-7": 1.0, OTHER_TENANTS: 2.0}
