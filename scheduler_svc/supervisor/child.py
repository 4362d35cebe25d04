"""One child process, and the supervisor's end of its lifeline.

Owns the process, the socket and the reading of what the child says. It knows nothing of roles or restarts: everything
is told to one callback, in order, the exit last.

A child gets a process group of its own, so that Ctrl-C in a terminal reaches the supervisor alone, even while the
child's interpreter still starts and could not ignore it yet. Its standard output is our standard error: ours carries
the ready line and nothing else.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from pagewire.wire.codec import JsonCodec, WireError
from pagewire.wire.control import FromChild, ToChild

_log = logging.getLogger(__name__)

_STDERR = 2
_MAX_LINE_BYTES = 1024 * 1024
_LAST_WORDS_S = 1.0
_ENVIRONMENT = {
    "PYTHONFAULTHANDLER": "1",  # stacks on stderr where it crashes, or is aborted
    # grpc's core would write on stderr what peers send it, as it came: a frame's text could forge lines, without end.
    "GRPC_VERBOSITY": "NONE",
}
"""Where the user's own does not say otherwise."""
"""How long an aborted child may take to write its stacks; and how long what an ended one still said may take to be
read, because a descendant of it could hold the socket open."""


class Exited(NamedTuple):
    """The process ended; a negative status is a signal's number."""

    status: int

    def __str__(self) -> str:
        if self.status >= 0:
            return f"ended with status {self.status}"
        name = signal.Signals(-self.status).name if -self.status in signal.valid_signals() else str(-self.status)
        hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return f"was ended by {name}{hint}"


ChildEvent = FromChild | Exited


class Process(Protocol):
    """A process that leads a process group, and has ended once `wait` returned."""

    @property
    def name(self) -> str:
        """For logs."""

    async def wait(self) -> int:
        """Its status, once it has ended."""

    def kill(self) -> None:
        """End it and its process group with SIGKILL."""

    def abort(self) -> None:
        """Send it SIGABRT."""


Starter = Callable[[socket.socket], Awaitable[Process]]
"""Starts a process that inherits this end of its lifeline. Raises OSError where it cannot."""


class SpawnedProcess:
    """A process that we have started ourselves."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, argv: Sequence[str], inherited: socket.socket, environ: Mapping[str, str]) -> "SpawnedProcess":
        """Start `argv` with the descriptor of an inherited socket behind it. Raises OSError."""
        return cls(
            await asyncio.create_subprocess_exec(
                *argv,
                str(inherited.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=_STDERR,
                pass_fds=[inherited.fileno()],
                env={**_ENVIRONMENT, **environ},
                process_group=0,
            )
        )

    @property
    def name(self) -> str:
        """For logs."""
        return f"process {self._process.pid}"

    async def wait(self) -> int:
        """Its status, once it has ended."""
        return await self._process.wait()

    def kill(self) -> None:
        """End it and its process group with SIGKILL."""
        self._send(os.killpg, signal.SIGKILL)

    def abort(self) -> None:
        """Send it SIGABRT."""
        self._send(os.kill, signal.SIGABRT)

    def _send(self, send: Callable[[int, int], None], number: int) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                send(self._process.pid, number)


class Child:
    """A running process. Made by `start`."""

    def __init__(
        self,
        process: Process,
        lifeline: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        on_event: Callable[[ChildEvent], None],
    ) -> None:
        self._process = process
        self._reader, self._writer = lifeline
        self._on_event = on_event
        self._from_child: JsonCodec[FromChild] = JsonCodec(FromChild)
        self._to_child: JsonCodec[ToChild] = JsonCodec(ToChild)
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def start(cls, start: Starter, on_event: Callable[[ChildEvent], None]) -> "Child":
        """Start a process with a lifeline to us. Raises OSError where it cannot be started."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await start(theirs)
            except BaseException:
                ours.close()
                raise
        return cls(process, await asyncio.open_connection(sock=ours, limit=_MAX_LINE_BYTES), on_event)

    @property
    def name(self) -> str:
        """For logs."""
        return self._process.name

    def send(self, message: ToChild) -> None:
        """Send a command. A child that is gone is noticed by its exit, not here."""
        if not self._writer.is_closing():
            self._writer.write(self._to_child.encode_line(message))

    def kill(self) -> None:
        """End it, and whatever it started in its process group, with SIGKILL."""
        self._process.kill()

    def abort(self) -> None:
        """End it, and let it write first where it hangs: SIGABRT makes Python print every thread's stack."""
        self._process.abort()
        asyncio.get_running_loop().call_later(_LAST_WORDS_S, self.kill)

    async def _watch(self) -> None:
        reading = asyncio.create_task(self._read())
        status = await self._process.wait()
        await asyncio.wait([reading], timeout=_LAST_WORDS_S)
        reading.cancel()
        self._writer.close()
        self._on_event(Exited(status))

    async def _read(self) -> None:
        try:
            while line := await self._reader.readline():
                self._on_event(self._from_child.decode(line))
        except (WireError, ValueError) as error:  # ValueError: a line over the limit
            _log.error("%s sent what is no message and is ended: %s", self.name, error)
            self.kill()
        except OSError:
            return  # the child went away while we wrote; its exit follows
