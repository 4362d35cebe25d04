"""Families: every metric's name, type, help and label, and where its value stands in a snapshot.

The tables are the only place where a metric is named. A label is an operator's name for a tenant, a word of ours, or of
the one model served; nothing that a caller writes is ever one, so the number of series is bounded. It knows neither
formats nor sockets.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from pagewire.scheduler_svc.metrics.totals import Snapshot
from pagewire.wire.measures import EngineGauges, Histogram

Value = float | Histogram
Kind = Literal["counter", "gauge", "histogram", "info"]


class Family(NamedTuple):
    """One metric."""

    name: str
    """A counter's without `_total`, an info's without `_info`."""
    kind: Kind
    help: str
    read: Callable[[Snapshot], Value | Mapping[str, Value] | Mapping[str, str] | None]
    """A value, or with a label one for each of its values; of an info its labels. None where there is none now."""
    label: str = ""
    constant: Mapping[str, str] = {}
    """Labels of every sample."""

    @property
    def sample_name(self) -> str:
        """What queries call it, but for a histogram's _bucket, _sum and _count."""
        return self.name + {"counter": "_total", "info": "_info"}.get(self.kind, "")


def gauge(name: str, text: str, read: Callable[[EngineGauges], float]) -> Family:
    """One of the engine's, absent while there is none."""
    return Family(name, "gauge", text, lambda now: None if now.gauges is None else read(now.gauges))


def counter(name: str, text: str, read: Callable[[Snapshot], Value | Mapping[str, Value]], label: str = "") -> Family:
    """One that only grows."""
    return Family(name, "counter", text, read, label)


def histogram(name: str, text: str, read: Callable[[Snapshot], Value | Mapping[str, Value]], label: str = "") -> Family:
    """Counts by range."""
    return Family(name, "histogram", text, read, label)


def utilization(gauges: EngineGauges) -> float:
    """Of the KV blocks, those that sequences hold: 0 to 1."""
    return gauges.used_blocks / gauges.total_blocks if gauges.total_blocks else 0.0


def _of_tenants(field: str) -> Callable[[Snapshot], Mapping[str, float]]:
    return lambda now: {name: getattr(use, field) for name, use in now.frontends.tenants.items()}


def pagewire_families(model_name: str, version: str, device: str) -> list[Family]:
    """Ours, for a server of this model."""
    return [
        Family(
            "pagewire_server",
            "info",
            "What is served, and by what",
            lambda now: {"model": model_name, "version": version, "device": device},
        ),
        *_ENGINE,
        *_STEPS,
        *_REQUESTS,
        *_TENANTS,
    ]


_ENGINE = [
    Family(
        "pagewire_engine_ready",
        "gauge",
        "1 while a new request would run",
        lambda now: float(now.gauges is not None and now.gauges.is_ready),
    ),
    gauge("pagewire_sequences_running", "Sequences that have a slot", lambda now: now.running),
    gauge("pagewire_sequences_waiting", "Sequences that wait for a slot", lambda now: now.waiting),
    gauge("pagewire_sequences_paused", "Sequences whose clients read too slowly", lambda now: now.paused),
    gauge("pagewire_waiting_tokens", "Tokens of the sequences that wait", lambda now: now.waiting_tokens),
    gauge("pagewire_kv_utilization_ratio", "KV blocks that sequences hold, of all", utilization),
    gauge("pagewire_kv_blocks", "KV blocks that there are", lambda now: now.total_blocks),
    gauge("pagewire_kv_used_blocks", "KV blocks that sequences hold", lambda now: now.used_blocks),
    gauge("pagewire_kv_cached_blocks", "KV blocks that the prefix cache alone holds", lambda now: now.cached_blocks),
    gauge("pagewire_kv_block_size_tokens", "Tokens that a KV block holds", lambda now: now.block_size),
    gauge(
        "pagewire_worker_idle_ratio",
        "Of the worker's time since the report before, while there was work, what it waited",
        lambda now: now.worker_idle_ratio,
    ),
    counter(
        "pagewire_worker_busy_seconds", "Time that the device computed", lambda now: now.engine.worker_busy_us / 1e6
    ),
    counter(
        "pagewire_worker_idle_seconds",
        "Time that the device waited for a plan while there was work",
        lambda now: now.engine.worker_idle_us / 1e6,
    ),
    counter(
        "pagewire_prefix_cache_queried_tokens",
        "Prompt tokens that were looked up in the prefix cache",
        lambda now: now.engine.prompt_tokens,
    ),
    counter(
        "pagewire_prefix_cache_hit_tokens",
        "Prompt tokens that were found there",
        lambda now: now.engine.cached_prompt_tokens,
    ),
    counter(
        "pagewire_preemptions",
        "Sequences that lost slot and blocks, and are computed again",
        lambda now: now.engine.preemptions,
    ),
    counter("pagewire_prompt_tokens", "Tokens of prompts that began to run", lambda now: now.engine.prompt_tokens),
    counter("pagewire_output_tokens", "Tokens that were generated", lambda now: now.engine.output_tokens),
    counter(
        "pagewire_dropped_frames",
        "Frames and connections of peers that were refused, by border and kind",
        lambda now: now.engine.dropped_frames,
        "kind",
    ),
    counter(
        "pagewire_process_restarts", "Processes that were started again, by role", lambda now: now.restarts, "process"
    ),
]

_STEPS = [
    histogram("pagewire_step_seconds", "From when a plan is next to its result", lambda now: now.engine.step),
    histogram(
        "pagewire_step_part_seconds",
        "Parts of a step: to plan, to send the plan, the device's own time, to take in the result",
        lambda now: {
            "plan": now.engine.step_plan,
            "send": now.engine.step_send,
            "worker": now.engine.step_worker,
            "apply": now.engine.step_apply,
        },
        "part",
    ),
    histogram("pagewire_step_tokens", "Tokens computed in a step", lambda now: now.engine.step_tokens),
    histogram("pagewire_step_plan_bytes", "Length of a step's plan", lambda now: now.engine.plan_bytes),
]

_REQUESTS = [
    Family(
        "pagewire_requests_open",
        "gauge",
        "Calls that generate and have not ended",
        lambda now: float(now.open_requests),
    ),
    counter(
        "pagewire_requests",
        "Calls that generate, by outcome: completed, refused, failed, cancelled",
        lambda now: now.frontends.requests,
        "outcome",
    ),
    counter("pagewire_outputs", "Outputs, by what ended them", lambda now: now.frontends.outputs, "reason"),
    counter(
        "pagewire_refusals",
        "Calls of any method that ended with an error, by reason",
        lambda now: now.frontends.refusals,
        "reason",
    ),
    histogram(
        "pagewire_time_to_first_token_seconds",
        "From a call's arrival to its first token",
        lambda now: now.frontends.time_to_first_token,
    ),
    histogram("pagewire_inter_token_seconds", "Between two tokens of an output", lambda now: now.frontends.inter_token),
    histogram("pagewire_request_seconds", "From a call's arrival to its end", lambda now: now.frontends.request),
    histogram("pagewire_request_queue_seconds", "Until a request's first step", lambda now: now.frontends.queue),
    histogram("pagewire_request_prefill_seconds", "From there to its first token", lambda now: now.frontends.prefill),
    histogram("pagewire_request_decode_seconds", "From there to its last token", lambda now: now.frontends.decode),
    histogram("pagewire_request_prompt_tokens", "Length of a prompt", lambda now: now.frontends.prompt_tokens),
    histogram(
        "pagewire_request_output_tokens", "Tokens of all outputs of a request", lambda now: now.frontends.output_tokens
    ),
    histogram(
        "pagewire_request_max_tokens", "Most tokens that an output may have", lambda now: now.frontends.max_tokens
    ),
    histogram("pagewire_request_outputs", "Outputs of a request", lambda now: now.frontends.outputs_asked),
]

_TENANTS = [
    counter("pagewire_tenant_requests", "Calls that generate", _of_tenants("requests"), "tenant"),
    counter("pagewire_tenant_prompt_tokens", "Tokens of prompts", _of_tenants("prompt_tokens"), "tenant"),
    counter(
        "pagewire_tenant_cached_tokens",
        "Prompt tokens found in the prefix cache",
        _of_tenants("cached_tokens"),
        "tenant",
    ),
    counter("pagewire_tenant_output_tokens", "Tokens that were generated", _of_tenants("output_tokens"), "tenant"),
    counter(
        "pagewire_tenant_kv_block_seconds",
        "KV blocks times the seconds that sequences held them",
        lambda now: now.engine.block_seconds,
        "tenant",
    ),
]
