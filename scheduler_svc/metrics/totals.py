"""Totals: what a server's processes have counted, together and over all their incarnations.

Owns the last report of each process, what its earlier incarnations came to, and how often each was started again. A
count never falls: a process that begins anew counts from zero, and what the one before it last reported is added. What
that counted afterwards, up to a second's worth, is lost with it. How the engine is now is told only while it says so:
one that stands still, or has ended, is not ready. It knows neither processes nor names of metrics.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import msgspec

from pagewire.wire.measures import (
    EngineCounts,
    EngineGauges,
    EngineMeasured,
    FrontendCounts,
    FrontendMeasured,
    Histogram,
    tenant_within,
)

RoleName = Literal["engine", "worker", "frontend"]
Value = TypeVar("Value")


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A server at one moment, its frontends all together."""

    engine: EngineCounts
    frontends: FrontendCounts
    gauges: EngineGauges | None
    """None while there is no engine that has said anything of late."""
    open_requests: int
    restarts: dict[str, int]
    """By role."""


class ServerTotals:
    """Of one server. Used on the supervisor's event loop alone."""

    def __init__(self, engine_timeout_s: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        """An engine that reports nothing for so long counts as away. `clock` is monotonic, in seconds."""
        self._engine_timeout_s = engine_timeout_s
        self._clock = clock
        self._version = 0
        self._engine_before = EngineCounts()
        self._engine: EngineMeasured | None = None
        self._gauges: EngineGauges | None = None
        self._gauges_until_s = 0.0
        self._frontends_before = FrontendCounts()
        self._frontends: dict[int, FrontendMeasured] = {}
        self._restarts: dict[str, int] = {"engine": 0, "worker": 0, "frontend": 0}
        self._tenants: set[str] = set()
        """Names that count by themselves; never forgotten, so a name is never told in two ways."""

    @property
    def version(self) -> int:
        """Changes with whatever a snapshot would say."""
        self._look_at_clock()
        return self._version

    def _look_at_clock(self) -> None:
        if self._gauges is not None and self._clock() > self._gauges_until_s:
            self._forget_gauges()

    def _forget_gauges(self) -> None:
        self._gauges = None
        self._version += 1

    def started(self, role: RoleName, index: int, incarnation: int) -> None:
        """A process's next incarnation begins; the first is 0."""
        self._version += 1
        # Ranks end and begin together: the loss of one counts once.
        self._restarts[role] += incarnation > 0 and (role != "worker" or index == 0)
        if role == "engine" and self._engine is not None:
            self._engine_before = added(self._engine_before, self._engine.counts)
            self._engine = None
            self._forget_gauges()
        if role == "frontend" and (last := self._frontends.pop(index, None)) is not None:
            self._frontends_before = added(self._frontends_before, last.counts)

    def ended(self, role: RoleName) -> None:
        """A process has ended, and may begin anew."""
        if role == "engine":
            self._forget_gauges()

    def measured(self, index: int, report: EngineMeasured | FrontendMeasured) -> None:
        """The incarnation that runs has counted so much since it began."""
        self._version += 1
        counts: Any = report.counts
        field = "block_seconds" if isinstance(report, EngineMeasured) else "tenants"
        known = msgspec.structs.replace(counts, **{field: self._by_known_name(getattr(counts, field))})
        report = msgspec.structs.replace(report, counts=known)
        if isinstance(report, EngineMeasured):
            self._engine, self._gauges = report, report.gauges
            self._gauges_until_s = self._clock() + self._engine_timeout_s
        else:
            self._frontends[index] = report

    def snapshot(self) -> Snapshot:
        """All together, which later reports do not change."""
        self._look_at_clock()
        engine, frontends = self._engine_before, self._frontends_before
        if self._engine is not None:
            engine = added(engine, self._engine.counts)
        for report in self._frontends.values():
            frontends = added(frontends, report.counts)
        return Snapshot(
            engine=engine,
            frontends=frontends,
            gauges=self._gauges,
            open_requests=sum(report.open_requests for report in self._frontends.values()),
            restarts=dict(self._restarts),
        )

    def _by_known_name(self, uses: Mapping[str, Value]) -> dict[str, Value]:
        """Each process has names of its own that are too many; together they are no more than one may have."""
        found: dict[str, Value] = {}
        for tenant, use in uses.items():
            name = tenant_within(self._tenants, tenant)
            self._tenants.add(name)
            found[name] = added(found[name], use) if name in found else use
        return found


def added(one: Value, other: Value) -> Value:
    """The sum of two counts, of the same kind: numbers, histograms, and mappings and structs of them."""
    match one, other:
        case Histogram(), Histogram():
            counts = [left + right for left, right in zip(one.counts, other.counts, strict=True)]
            return type(one)(one.bounds, counts, one.total + other.total)
        case msgspec.Struct(), msgspec.Struct():
            parts = {name: added(getattr(one, name), getattr(other, name)) for name in one.__struct_fields__}
            return type(one)(**parts)
        case dict(), dict():
            sums: Any = {**one, **other}
            sums.update({name: added(one[name], other[name]) for name in one.keys() & other.keys()})
            return sums  # type: ignore[no-any-return]
        case int() | float(), int() | float():
            return one + other  # type: ignore[return-value,operator]
        case _:
            raise TypeError(f"{type(one).__name__} and {type(other).__name__} have no sum")
