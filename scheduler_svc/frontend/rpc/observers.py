"""Observers: who is told of every request's end."""

from collections.abc import Callable

from pagewire.scheduler_svc.frontend.rpc.request_log import RequestLog
from pagewire.scheduler_svc.frontend.rpc.request_records import RequestRecords
from pagewire.scheduler_svc.launch import FrontendLaunch


class RequestObservers:
    """Of one frontend."""

    def __init__(self, launch: FrontendLaunch, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._log = RequestLog(launch.model.name, clock) if RequestLog.is_wanted() else None

    def records(self, clock: Callable[[], float]) -> RequestRecords:
        """What tells them."""
        return RequestRecords([] if self._log is None else [self._log.observe], clock)

    def close(self) -> None:
        """Write what waits, as far as it is taken."""
        if self._log is not None:
            self._log.close()
