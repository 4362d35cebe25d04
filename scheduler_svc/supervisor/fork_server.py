"""Fork servers, from the supervisor's side: start children by forking a process that has imported what they need.

Each owns that process and what is known of those it has forked. A child that ends is an end like any other; where the
fork server ends, which takes its children with it, the next child's start begins another.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pagewire.scheduler_svc.supervisor.child import Exited, SpawnedProcess
from pagewire.wire.codec import JsonCodec, WireError
from pagewire.wire.fork_server import Ended, Fork, Forked, FromForkServer, NotForked, Reap, ToForkServer

_log = logging.getLogger(__name__)

_MAX_PACKET_BYTES = 65_536
_END_S = 1.0
_NOT_FORKED_STATUS = 1


class ForkedProcess:
    """A child, from the moment that it was asked for: it may not be there yet."""

    def __init__(self, server: SpawnedProcess) -> None:
        self._server = server
        self._pid: int | None = None
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def name(self) -> str:
        """For logs."""
        return "a process that is not there yet" if self._pid is None else f"process {self._pid}"

    async def wait(self) -> int:
        """Its status, once it has ended."""
        return await self._ended

    def kill(self) -> None:
        """End it and its process group with SIGKILL; where it is not there yet, the fork server that is to make it."""
        if self._pid is None:
            self._server.kill()
        self._send(os.killpg, signal.SIGKILL)

    def abort(self) -> None:
        """Send it SIGABRT."""
        self._send(os.kill, signal.SIGABRT)

    def began(self, pid: int) -> None:
        """It is there."""
        self._pid = pid

    def end(self, status: int) -> None:
        """It has ended. Its number is its own until the fork server is told to reap it."""
        if not self._ended.done():
            self._ended.set_result(status)

    def _send(self, send: Callable[[int, int], None], number: int) -> None:
        if self._pid is not None and not self._ended.done():
            with contextlib.suppress(ProcessLookupError):
                send(self._pid, number)


class _Incarnation:
    """One fork server, from its start to its end."""

    def __init__(self, process: SpawnedProcess, requests: socket.socket, of: str) -> None:
        self._process = process
        self._of = of
        self._requests = requests
        self._asked: deque[ForkedProcess] = deque()
        """Not there yet, in the order of asking."""
        self._running: dict[int, ForkedProcess] = {}
        self._sends: JsonCodec[ToForkServer] = JsonCodec(ToForkServer)
        self._receives: JsonCodec[FromForkServer] = JsonCodec(FromForkServer)
        self.has_ended = False
        self._is_given_up = False
        requests.setblocking(False)
        asyncio.get_running_loop().add_reader(requests, self._read)
        self._watching = asyncio.create_task(self._watch())

    def fork(self, launch_file: Path, lifeline: socket.socket) -> ForkedProcess:
        """Ask for a child. One that cannot be asked for any more ends with the server."""
        forked = ForkedProcess(self._process)
        self._asked.append(forked)
        with contextlib.suppress(OSError):
            packet = self._sends.encode_line(Fork(str(launch_file)))
            socket.send_fds(self._requests, [packet], [lifeline.fileno()])
        return forked

    def give_up(self) -> None:
        """End it at once, with children that it was asked for and that are not there yet."""
        if self._asked and not self.has_ended:
            self._is_given_up = True
            self._process.kill()

    async def close(self) -> None:
        """End it; its children have ended."""
        self._close_requests()
        try:
            await asyncio.wait_for(asyncio.shield(self._watching), _END_S)
        except TimeoutError:
            self._process.kill()
            await self._watching

    def _read(self) -> None:
        try:
            while packet := self._requests.recv(_MAX_PACKET_BYTES):
                self._take(self._receives.decode(packet))
        except BlockingIOError:
            return
        except (WireError, OSError, LookupError) as error:
            _log.error("the fork server of %s said what means nothing and is ended: %r", self._of, error)
            self._process.kill()
        self._close_requests()

    def _take(self, message: FromForkServer) -> None:
        match message:
            case Forked(pid):
                forked = self._asked.popleft()
                forked.began(pid)
                self._running[pid] = forked
            case NotForked(reason):
                _log.error("the fork server of %s cannot fork: %s", self._of, reason)
                self._asked.popleft().end(_NOT_FORKED_STATUS)
            case Ended(pid, status):
                self._running.pop(pid).end(status)
                self._requests.send(self._sends.encode_line(Reap(pid)))

    async def _watch(self) -> None:
        status = await self._process.wait()
        self.has_ended = True
        if self._requests.fileno() >= 0:
            self._read()  # what it still said
        self._close_requests()
        if (self._asked or self._running) and not self._is_given_up:
            _log.error("the fork server of %s %s, and they with it", self._of, Exited(status))
        for forked in self._asked:
            forked.end(status)
        for forked in self._running.values():
            forked.end(-signal.SIGKILL)

    def _close_requests(self) -> None:
        if self._requests.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._requests)
            self._requests.close()


class ForkServer:
    """Starts children of one kind on this host."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], of: str) -> None:
        """`of`: what it forks, for logs. `--requests-fd N` follows the command."""
        self._command = (*command, "--requests-fd")
        self._of = of
        # A fork is safe where there is one thread; nothing here multiplies matrices with numpy.
        self._environ = {"OPENBLAS_NUM_THREADS": "1", **environ}
        self._incarnation: _Incarnation | None = None

    async def start(self, launch_file: Path, lifeline: socket.socket) -> ForkedProcess:
        """Start a child. Raises OSError where the fork server cannot be started."""
        if self._incarnation is None or self._incarnation.has_ended:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                try:
                    process = await SpawnedProcess.start(self._command, theirs, self._environ)
                except BaseException:
                    ours.close()
                    raise
            self._incarnation = _Incarnation(process, ours, self._of)
        return self._incarnation.fork(launch_file, lifeline)

    def give_up(self) -> None:
        """The server ends: whoever waits for a child to be there need not. Nothing of it has begun."""
        if self._incarnation is not None:
            self._incarnation.give_up()

    async def close(self) -> None:
        """End it, if it runs."""
        if self._incarnation is not None:
            await self._incarnation.close()
