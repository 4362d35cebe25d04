"""Measures: what an engine and its frontends count, and how the supervisor is told.

Plain counts, which cost an addition where something happens; names, help and formats are the listener's
(`pagewire.scheduler_svc.metrics`). A process counts from its own start, and says all of it every time: a report that is
lost, or was left out where the supervisor stood still, takes nothing with it.

No field holds a text that a caller wrote. Tenants are the operator's own names, at most MAX_TENANTS of them.
"""

from bisect import bisect_left
from collections.abc import Collection
from typing import Annotated

import msgspec
from msgspec import Meta

from pagewire.wire.codec import Count, ShortCounts, ShortText, Total

MAX_TENANTS = 200
"""Those that come later count together, as OTHER_TENANTS."""
OTHER_TENANTS = "*"
"""No tenant's name: in a limits file it stands for all who are not named, too."""

OUTCOMES = ("completed", "refused", "failed", "cancelled")
"""Of a call that generates: refused before it had a step, failed after; cancelled by its client, which may just not
read, or by its deadline."""
ENDS = ("eos", "length", "stop_string", "stop_token", "aborted")
"""Of an output."""
REFUSALS = (
    "invalid_argument",
    "not_found",
    "deadline_exceeded",
    "unauthenticated",
    "permission_denied",
    "out_of_range",
    "kv_events_lost",
    "unimplemented",
    "model_failed",
    "internal",
    "worker_lost",
    "engine_lost",
    "draining",
    "loading",
    "queue_full",
    "queue_timeout",
    "tenant_limit",
    "request_bytes",
    "too_many_calls",
    "text_work",
    "slow_reader",
    "kv_memory",
)
"""Why a call ended with an error: the status, or where many have one, what stood behind it."""

DROPPED = (
    "frontends.malformed",
    "frontends.unknown",
    "frontends.stale",
    "frontends.replayed",
    "frontends.unfit",
    "frontends.refused_connections",
    "workers.malformed",
    "workers.unknown",
    "workers.stale",
    "workers.replayed",
    "workers.unfit",
    "workers.refused_connections",
    "worker.malformed",
)
"""Frames and connections of peers that the engine refused, by its border and why; and frames of its own that the worker
could not read. Each is counted from zero, or the first that there is would not be seen to have come."""

_Sum = Annotated[float, Meta(ge=0)]
_Bounds = Annotated[tuple[float, ...], Meta(max_length=64)]

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
           20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
"""Upper bounds of what a client waits for."""
GAP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
               0.75, 1.0, 2.5, 5.0, 10.0, 80.0)  # fmt: skip
"""Of the time between two tokens."""
STEP_SECONDS = (0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5,
                1.0, 2.0, 5.0, 10.0)  # fmt: skip
"""Of a step and of its parts, some of which take microseconds."""
TOKENS = tuple(float(1 << power) for power in range(0, 21, 2))
BYTES = tuple(float(1 << power) for power in range(6, 27, 2))


class Histogram(msgspec.Struct, array_like=True):
    """How many values lie in each range, and their sum. Only its owner changes it."""

    bounds: _Bounds
    """Upper ones, ascending; a value that equals one lies below it."""
    counts: list[Total]
    """One more than there are bounds: the last is of what lies above them all."""
    total: float = 0.0

    @classmethod
    def empty(cls, bounds: tuple[float, ...]) -> "Histogram":
        """Of nothing yet."""
        return cls(bounds, [0] * (len(bounds) + 1))

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, which came so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


def _of(bounds: tuple[float, ...]) -> Histogram:
    return msgspec.field(default_factory=lambda: Histogram.empty(bounds))


def tenant_within(known: Collection[str], tenant: str) -> str:
    """The name under which a tenant counts, beside those that are known."""
    return tenant if tenant in known or len(known) < MAX_TENANTS else OTHER_TENANTS


class TenantUse(msgspec.Struct, array_like=True):
    """What one tenant has used, counted as its requests end."""

    requests: Total = 0
    prompt_tokens: Total = 0
    cached_tokens: Total = 0
    """Of the prompts'."""
    output_tokens: Total = 0


_TenantUses = Annotated[dict[ShortText, TenantUse], Meta(max_length=MAX_TENANTS + 1)]
_TenantSums = Annotated[dict[ShortText, _Sum], Meta(max_length=MAX_TENANTS + 1)]


class FrontendCounts(msgspec.Struct, kw_only=True):
    """One frontend's, since it started. Times are in seconds."""

    requests: ShortCounts = msgspec.field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    """Calls that generate."""
    outputs: ShortCounts = msgspec.field(default_factory=lambda: dict.fromkeys(ENDS, 0))
    """Outputs that have ended by themselves."""
    refusals: ShortCounts = msgspec.field(default_factory=lambda: dict.fromkeys(REFUSALS, 0))
    """Calls of any method."""
    tenants: _TenantUses = {}
    time_to_first_token: Histogram = _of(SECONDS)
    inter_token: Histogram = _of(GAP_SECONDS)
    request: Histogram = _of(SECONDS)
    queue: Histogram = _of(SECONDS)
    prefill: Histogram = _of(SECONDS)
    decode: Histogram = _of(SECONDS)
    prompt_tokens: Histogram = _of(TOKENS)
    output_tokens: Histogram = _of(TOKENS)
    outputs_asked: Histogram = _of(TOKENS)
    max_tokens: Histogram = _of(TOKENS)


class EngineCounts(msgspec.Struct, kw_only=True):
    """The engine's, since it started. Times are in seconds."""

    prompt_tokens: Total = 0
    cached_prompt_tokens: Total = 0
    output_tokens: Total = 0
    preemptions: Total = 0
    worker_busy_us: Total = 0
    worker_idle_us: Total = 0
    dropped_frames: ShortCounts = msgspec.field(default_factory=lambda: dict.fromkeys(DROPPED, 0))
    """By border and kind."""
    block_seconds: _TenantSums = {}
    """KV blocks × seconds that each tenant's sequences held; a shared block counts for each that holds it."""
    step: Histogram = _of(STEP_SECONDS)
    """From when a plan was the oldest in flight to its result."""
    step_plan: Histogram = _of(STEP_SECONDS)
    """To decide on it."""
    step_send: Histogram = _of(STEP_SECONDS)
    """To encode and send the plan."""
    step_worker: Histogram = _of(STEP_SECONDS)
    """The device's own time."""
    step_apply: Histogram = _of(STEP_SECONDS)
    """To take the result in."""
    step_tokens: Histogram = _of(TOKENS)
    plan_bytes: Histogram = _of(BYTES)


class EngineGauges(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine is now."""

    is_ready: bool
    """Whether a new request would run."""
    running: Count
    waiting: Count
    waiting_tokens: Total
    """Prompt tokens of those that wait."""
    paused: Count
    used_blocks: Count
    cached_blocks: Count
    total_blocks: Count
    block_size: Count
    worker_idle_ratio: Annotated[float, Meta(ge=0, le=1)]
    """Of the worker's time since the report before, while there was work: the share that it waited."""


class EngineMeasured(msgspec.Struct, frozen=True, tag="engine_measured"):
    """From the engine, with each of its load reports."""

    counts: EngineCounts
    gauges: EngineGauges


class FrontendMeasured(msgspec.Struct, frozen=True, tag="frontend_measured"):
    """From a frontend, every second."""

    counts: FrontendCounts
    open_requests: Count
    """Calls that generate and have not ended."""
