"""Lifelines: a child's end of the control channel, the same for frontends, the engine and workers.

The supervisor passes an inherited Unix stream socket by number. End-of-file on it means that the supervisor is gone,
however it ended, and the child must not outlive it.
"""

import os
import select
import socket
import threading
from collections.abc import Callable

from pagewire.wire.codec import JsonCodec, WireError
from pagewire.wire.control import Alive, FromChild, ToChild

ORPHANED_STATUS = 70
"""Exit status of a child whose supervisor went away."""

RANKS_LOST_STATUS = 75
"""Exit status of a worker that ended because another rank of its group did."""

_MAX_LINE_BYTES = 1024 * 1024


class Lifeline:
    """Reads commands of the supervisor and sends it news. `send` may be called from any thread."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.set_inheritable(False)
        self._sending = threading.Lock()
        self._unsent = b""
        """The rest of a message that `offer` could not send whole; whatever is sent next follows it."""
        self._buffer = bytearray()
        self._from_child: JsonCodec[FromChild] = JsonCodec(FromChild)
        self._to_child: JsonCodec[ToChild] = JsonCodec(ToChild)

    def fileno(self) -> int:
        """For pollers."""
        return self._socket.fileno()

    def send(self, message: FromChild) -> None:
        """Tell the supervisor. A supervisor that is gone is noticed by `receive`, not here."""
        with self._sending:
            rest, self._unsent = self._unsent, b""
            try:
                self._socket.sendall(rest + self._from_child.encode_line(message))
            except OSError:
                return

    def offer(self, message: FromChild) -> bool:
        """Send what may be left out, without waiting; false where it was, because the supervisor reads too slowly."""
        if not self._sending.acquire(blocking=False):
            return False
        try:
            if self._unsent and not self._send_now(self._unsent):
                return False
            self._send_now(self._from_child.encode_line(message))
            return True
        finally:
            self._sending.release()

    def _send_now(self, data: bytes) -> bool:
        """As much as can be without waiting; keeps the rest. True where nothing is left."""
        try:
            sent = self._socket.send(data, socket.MSG_DONTWAIT)
        except OSError:
            sent = 0
        self._unsent = data[sent:]
        return not self._unsent

    def beat(self) -> None:
        """Say `Alive`, or nothing where that would have to wait: a supervisor that stands still must not hold us up."""
        self.offer(Alive())

    def receive(self, timeout_s: float | None) -> list[ToChild]:
        """Wait for commands, at most `timeout_s` (none: for ever; 0: not at all); an empty list on time-out.

        Raises EOFError once the supervisor is gone, and WireError for a line that is no command, which only a
        supervisor of another version can send.
        """
        if not select.select([self._socket], [], [], timeout_s)[0]:
            return []
        try:
            received = self._socket.recv(65536)
        except OSError:
            received = b""
        if not received:
            raise EOFError("the supervisor is gone")
        self._buffer += received
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        if len(rest) > _MAX_LINE_BYTES:
            raise WireError(f"a control line is over {_MAX_LINE_BYTES} bytes")
        return [self._to_child.decode(line) for line in lines]

    def watch(self, on_command: Callable[[ToChild], None]) -> threading.Thread:
        """Read commands on a thread of their own, for a process whose main thread is busy or runs an event loop.

        The process ends at once, with ORPHANED_STATUS, when the supervisor is gone.
        """

        def read() -> None:
            try:
                while True:
                    for command in self.receive(None):
                        on_command(command)
            except (EOFError, WireError):
                os._exit(ORPHANED_STATUS)

        thread = threading.Thread(target=read, name="lifeline", daemon=True)
        thread.start()
        return thread
