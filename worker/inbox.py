"""Commands for the worker's main thread, put there by the lifeline's thread and by signal handlers; and its alarm.

A step may run for a second, so commands cannot be read where steps run; and the main thread sleeps in a poller, so
it must be woken, also where a device is done with a step. Both `queue.SimpleQueue.put` and a write to a non-blocking
pipe are safe in a signal handler.
"""

import contextlib
import os
import queue

from pagewire.wire.control import ToChild


class Inbox:
    """Any thread puts, the main thread takes."""

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[ToChild] = queue.SimpleQueue()
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)

    def put(self, command: ToChild) -> None:
        """Add a command and wake whoever polls `fileno`."""
        self._commands.put(command)
        self.wake()

    def wake(self) -> None:
        """Wake whoever polls `fileno`, from any thread."""
        # A full pipe wakes just as well.
        with contextlib.suppress(BlockingIOError):
            os.write(self._write_fd, b"\0")

    def take(self) -> ToChild | None:
        """The oldest command, or None at once."""
        try:
            return self._commands.get_nowait()
        except queue.Empty:
            return None

    def fileno(self) -> int:
        """Readable after a `put` or `wake`, until `rest`."""
        return self._read_fd

    def rest(self) -> None:
        """Call after waking and before `take`: the descriptor is quiet until the next `put` or `wake`."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read_fd, 4096)
