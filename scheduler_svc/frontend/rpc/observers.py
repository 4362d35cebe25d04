"""Observers: who is told of every request's end, the log and, where a collector is named, traces."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from pagewire.scheduler_svc.frontend.rpc.request_log import RequestLog
from pagewire.scheduler_svc.frontend.rpc.request_records import RequestRecords
from pagewire.scheduler_svc.launch import FrontendLaunch

if TYPE_CHECKING:
    from pagewire.scheduler_svc.frontend.rpc.tracing import RequestTraces


class RequestObservers:
    """Of one frontend."""

    def __init__(self, launch: FrontendLaunch, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds. Raises ValueError for a variable OTEL_* that is wrong."""
        self._traces = None if launch.otlp_endpoint is None else _traces(launch.otlp_endpoint, launch.model.name)
        self._log = RequestLog(launch.model.name, clock) if RequestLog.is_wanted() else None

    def records(self, clock: Callable[[], float]) -> RequestRecords:
        """What tells them."""
        told = [each.observe for each in (self._log, self._traces) if each is not None]
        return RequestRecords(told, clock)

    def close(self) -> None:
        """Write and send what waits, as far as it is taken."""
        for each in (self._log, self._traces):
            if each is not None:
                each.close()


def _traces(endpoint: str, model: str) -> "RequestTraces":
    # OpenTelemetry's SDK is an extra of its own, and takes a while to import.
    from pagewire.scheduler_svc.frontend.rpc.tracing import RequestTraces

    return RequestTraces(endpoint, model)
