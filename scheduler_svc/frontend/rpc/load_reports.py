"""Load reports: how busy the server is, in the trailers of its calls, for balancers that follow ORCA.

A report is an `xds.data.orca.v3.OrcaLoadReport` under `endpoint-load-metrics-bin`, which gRPC's own client policy
`weighted_round_robin` and Envoy's client-side weighted round robin read. Both weigh a server by its requests a second,
divided by its utilization. The two are averaged alike here, so that the weight comes to what the server's slots can do,
slots by a request's mean time, whatever share of the requests it has been given.

It knows neither services nor why calls end. The report is made once for each of the engine's loads and not for each
call. It tells of the server as a whole and of no tenant, and only to callers that were let in.
"""

import math
import struct
from collections.abc import Callable
from typing import Any

import grpc

from pagewire.scheduler_svc.frontend.errors import (
    InternalError,
    ModelFailed,
    PermissionDenied,
    RequestError,
    Unauthenticated,
    Unavailable,
)
from pagewire.scheduler_svc.frontend.streams.engine_status import EngineStatus
from pagewire.wire.requests import Load

LOAD_REPORT_TRAILER = "endpoint-load-metrics-bin"
_HORIZON_S = 5.0
"""Averages are exponential, with this time constant: some of the engine's load reports, and less than balancers wait
before they believe a new server."""
_STRANGERS = (Unauthenticated, PermissionDenied)
_SERVERS_FAULT = (InternalError, ModelFailed, Unavailable)
# Field numbers of OrcaLoadReport.
_RPS_FRACTIONAL, _EPS, _NAMED_METRICS, _APPLICATION_UTILIZATION = 6, 7, 8, 9
_DOUBLE, _BYTES = 1, 2
"""Protobuf's wire types."""

Trailer = tuple[tuple[str, bytes], ...]


class LoadReports:
    """The report that calls end with now. Used from the event loop's thread alone."""

    def __init__(self, status: EngineStatus, max_num_seqs: int, clock: Callable[[], float]) -> None:
        """`max_num_seqs` run at once. `clock` is monotonic, in seconds."""
        self._status = status
        self._max_num_seqs = max_num_seqs
        self._clock = clock
        self._trailer: Trailer = ()
        self._last: tuple[float, Load] | None = None
        self._num_failed = 0
        self._busy_slots = 0.0
        self._arrivals_per_s = 0.0
        self._failures_per_s = 0.0
        status.on_load(self._heard)

    def succeeded(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """A call is about to end well."""
        if trailer := self._current():
            context.set_trailing_metadata(trailer)

    def failed(self, error: RequestError | InternalError) -> Trailer:
        """What goes into the trailer of a call that ends so."""
        if isinstance(error, _SERVERS_FAULT):
            self._num_failed += 1
        return () if isinstance(error, _STRANGERS) else self._current()

    def _current(self) -> Trailer:
        """None while the engine says nothing: an old load would draw calls to a server that stands still."""
        return () if self._status.load is None or self._status.is_lost else self._trailer

    def _heard(self, load: Load) -> None:
        now_s = self._clock()
        busy_slots = load.running + load.waiting
        last, self._last = self._last, (now_s, load)
        if last is None or load.arrivals < last[1].arrivals:  # the first of an engine
            self._busy_slots = busy_slots
        elif (elapsed_s := now_s - last[0]) > 0:
            share = -math.expm1(-elapsed_s / _HORIZON_S)
            self._busy_slots += share * (busy_slots - self._busy_slots)
            arrived = (load.arrivals - last[1].arrivals) / elapsed_s
            self._arrivals_per_s += share * (arrived - self._arrivals_per_s)
            self._failures_per_s += share * (self._num_failed / elapsed_s - self._failures_per_s)
            self._num_failed = 0
        self._trailer = () if load.total_blocks == 0 else ((LOAD_REPORT_TRAILER, self._report(load)),)

    def _report(self, load: Load) -> bytes:
        kv_cache_usage = load.used_blocks / load.total_blocks
        named_metrics = {
            "kv_cache_usage_perc": kv_cache_usage,  # 0 to 1, under the name that vLLM gave it
            "num_requests_running": load.running,
            "num_requests_waiting": load.waiting,
        }
        return b"".join(
            (
                _double(_RPS_FRACTIONAL, self._arrivals_per_s + self._failures_per_s),
                _double(_EPS, self._failures_per_s),
                *(_entry(_NAMED_METRICS, name, value) for name, value in named_metrics.items()),
                _double(_APPLICATION_UTILIZATION, max(self._busy_slots / self._max_num_seqs, kv_cache_usage)),
            )
        )


def _double(field: int, value: float) -> bytes:
    return struct.pack("<Bd", field << 3 | _DOUBLE, value)


def _entry(field: int, key: str, value: float) -> bytes:
    """Of a map<string, double>. No key is so long that a length takes two bytes."""
    entry = struct.pack("<BB", 1 << 3 | _BYTES, len(key)) + key.encode() + _double(2, value)
    return struct.pack("<BB", field << 3 | _BYTES, len(entry)) + entry
