"""The host: what a supervisor acts through, other than its children's lifelines, and what it is told by.

Commands, files, environment; systemd, which is told how far the service is (sd_notify(3)) where it was started with
Type=notify; and the process that started the server. All is made once by the command that runs the supervisor.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping

import msgspec

from pagewire.scheduler_svc.metrics.totals import ServerTotals
from pagewire.scheduler_svc.progress import Progress
from pagewire.scheduler_svc.startup_errors import SettingsError
from pagewire.scheduler_svc.supervisor.runtime_dir import RuntimeDir
from pagewire.scheduler_svc.supervisor.server_plan import Addresses, Commands

_EXTENSION_S = 60.0
_EXTEND_EVERY_S = 5.0


class SystemdNotifier:
    """Sends state lines to $NOTIFY_SOCKET; silent where there is none, or where nobody listens any more."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def notify(self, *lines: str) -> None:
        """Send lines such as READY=1."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
            try:
                datagrams.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                return

    def extend(self, seconds: float, status: str) -> None:
        """Ask for this much time from now until the next state, and say why."""
        self.notify(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}", f"STATUS={status}")


class SystemdProgress:
    """Shows progress, and asks systemd for more time as long as there is any: fetching a model takes minutes."""

    def __init__(self, shown: Progress, notifier: SystemdNotifier, clock: Callable[[], float] = time.monotonic) -> None:
        self._shown = shown
        self._notifier = notifier
        self._clock = clock
        self._next_s = clock()

    def report(self, stage: str, fraction: float) -> None:
        """Say how much of `stage` is done, 0 … 1."""
        self._shown.report(stage, fraction)
        if self._clock() >= self._next_s:
            self._next_s = self._clock() + _EXTEND_EVERY_S
            self._notifier.extend(_EXTENSION_S, f"{stage} {fraction:.0%}")

    def close(self) -> None:
        """End the display."""
        self._shown.close()


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """Commands, files, environment, and whom to tell."""

    commands: Commands
    runtime_dir: RuntimeDir
    environ: Mapping[str, str]
    """Of the children."""
    progress: Progress
    notifier: SystemdNotifier
    announce: Callable[[Addresses], None]
    """Called once, when everything is ready."""
    totals: ServerTotals = msgspec.field(default_factory=ServerTotals)
    """Told what processes count, and which were started again."""
    clock: Callable[[], float] = time.monotonic


def watch_parent(descriptor: int) -> None:
    """End the server with the process that started it, for programs that start one for themselves (`--parent-fd`).

    The descriptor is the reading end of a pipe whose other end the parent alone holds and never writes to. End-of-file
    means that the parent is gone, however it ended; then the server drains, as with SIGTERM. It is watched on a thread
    of its own. Raises SettingsError for a descriptor that is not open.
    """
    try:
        os.set_inheritable(descriptor, False)
    except OSError as error:
        raise SettingsError(f"--parent-fd {descriptor} is not an open descriptor") from error

    def watch() -> None:
        while os.read(descriptor, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
