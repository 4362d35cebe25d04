"""Ends the server with the process that started it, for programs that start one for themselves (`--parent-fd`).

The descriptor is the reading end of a pipe whose other end the parent alone holds and never writes to. End-of-file
means that the parent is gone, however it ended; then the server drains, as with SIGTERM.
"""

import os
import signal
import threading

from pagewire.scheduler_svc.startup_errors import SettingsError


def watch_parent(descriptor: int) -> None:
    """Watch on a thread of its own. Raises SettingsError for a descriptor that is not open."""
    try:
        os.set_inheritable(descriptor, False)
    except OSError as error:
        raise SettingsError(f"--parent-fd {descriptor} is not an open descriptor") from error

    def watch() -> None:
        while os.read(descriptor, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
