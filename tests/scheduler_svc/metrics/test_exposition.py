"""What a scraper reads: both formats parse, and every family is there with its type and unit."""

import math

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from pagewire.scheduler_svc.metrics.exposition import exposed, wants_open_metrics
from pagewire.scheduler_svc.metrics.families import Family, pagewire_families
from pagewire.scheduler_svc.metrics.totals import ServerTotals
from pagewire.scheduler_svc.metrics.vllm_names import vllm_families
from pagewire.wire.measures import (
    MAX_TENANTS,
    EngineCounts,
    EngineGauges,
    EngineMeasured,
    FrontendCounts,
    FrontendMeasured,
    TenantUse,
)

FAMILIES = [*pagewire_families("a model", "1.2.3", "sim"), *vllm_families("a model")]


def busy() -> ServerTotals:
    """A server that has done a little of everything."""
    totals = ServerTotals()
    for role in ("engine", "worker", "frontend"):
        totals.started(role, 0, 0)
    engine = EngineCounts(prompt_tokens=100, cached_prompt_tokens=64, block_seconds={"ann": 2.5})
    engine.dropped_frames = {"frontends.malformed": 3}
    engine.step.observe(0.012)
    engine.plan_bytes.observe(103)
    gauges = EngineGauges(
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
    totals.measured(0, EngineMeasured(engine, gauges))
    frontend = FrontendCounts(tenants={'a "quoted" \\ name\nof two lines': TenantUse(1, 2, 3, 4)})
    frontend.requests["completed"] = 1
    frontend.time_to_first_token.observe(0.1)
    frontend.time_to_first_token.observe(1e9)
    totals.measured(0, FrontendMeasured(frontend, 1))
    return totals


def test_the_text_format_parses_and_says_what_was_counted() -> None:
    body, content_type = exposed(busy().snapshot(), FAMILIES, open_metrics=False)
    assert content_type.startswith("text/plain")
    families = {family.name: family for family in parser.text_string_to_metric_families(body.decode())}
    utilization = families["pagewire_kv_utilization_ratio"].samples[0].value
    assert utilization == families["vllm:kv_cache_usage_perc"].samples[0].value == 0.25
    config = families["vllm:cache_config_info"].samples[0].labels
    assert (config["block_size"], config["num_gpu_blocks"]) == ("32", "16")
    assert families["pagewire_tenant_requests"].samples[0].labels == {"tenant": 'a "quoted" \\ name\nof two lines'}
    first = {
        (sample.name.removeprefix("pagewire_time_to_first_token_seconds"), sample.labels.get("le")): sample.value
        for sample in families["pagewire_time_to_first_token_seconds"].samples
    }
    assert first["_count", None] == first["_bucket", "+Inf"] == 2
    assert first["_bucket", "0.08"] == 0
    assert first["_bucket", "0.1"] == first["_bucket", "2560.0"] == 1


def test_open_metrics_parses_with_the_same_families() -> None:
    body, content_type = exposed(busy().snapshot(), FAMILIES, open_metrics=True)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    families = {family.name: family for family in openmetrics_parser.text_string_to_metric_families(body.decode())}
    assert set(families) == {family.name for family in FAMILIES}
    assert families["pagewire_step_seconds"].unit == "seconds"
    assert families["pagewire_kv_utilization_ratio"].unit == "ratio"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1", True),
        ("text/plain, Application/OpenMetrics-Text", True),
        ("text/plain;version=0.0.4;q=0.5,*/*", False),
        ("application/openmetrics-textual", False),
        (";;=,,", False),
        ("", False),
    ],
)
def test_open_metrics_is_for_who_names_it(accept: str, wanted: bool) -> None:
    assert wants_open_metrics(accept) is wanted


def test_the_most_series_that_there_can_be() -> None:
    """The operator's page names the number."""
    totals = busy()
    names = [f"tenant-{number}" for number in range(1000)]
    totals.measured(1, FrontendMeasured(FrontendCounts(tenants={name: TenantUse(1) for name in names}), 0))
    gauges = totals.snapshot().gauges
    assert gauges is not None
    totals.measured(0, EngineMeasured(EngineCounts(block_seconds=dict.fromkeys(names, 1.0)), gauges))
    body, _ = exposed(totals.snapshot(), FAMILIES, open_metrics=False)
    samples = [sample for family in parser.text_string_to_metric_families(body.decode()) for sample in family.samples]
    of_tenants = [sample for sample in samples if "tenant" in sample.labels]
    assert 4 * MAX_TENANTS < len(of_tenants) <= 5 * (MAX_TENANTS + 1)
    assert len(samples) < 2000


def test_before_anything_was_reported_counters_are_zero_and_there_are_no_gauges() -> None:
    body, _ = exposed(ServerTotals().snapshot(), FAMILIES, open_metrics=True)
    families = {family.name: family for family in openmetrics_parser.text_string_to_metric_families(body.decode())}
    assert "pagewire_sequences_running" not in families
    assert "vllm:num_requests_running" not in families
    assert families["pagewire_engine_ready"].samples[0].value == 0
    assert {sample.value for sample in families["pagewire_requests"].samples} == {0}
    assert len(families["pagewire_requests"].samples) == 4


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_follow_prometheus_conventions(family: Family) -> None:
    assert family.help
    assert family.label in ("", "tenant", "reason", "outcome", "part", "process", "kind", "finished_reason")
    if family.name.startswith("vllm:"):
        return
    assert family.name.startswith("pagewire_")
    assert not family.name.endswith(("_total", "_info", "_count", "_sum", "_bucket", "_milliseconds"))
    if family.kind == "histogram":
        value = family.read(busy().snapshot())
        histograms = value.values() if isinstance(value, dict) else [value]
        for histogram in histograms:
            assert list(histogram.bounds) == sorted(set(histogram.bounds))
            assert math.isfinite(histogram.bounds[-1])
