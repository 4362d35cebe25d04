"""Fork servers: processes that have imported what a worker, or a frontend, needs, and fork one for every launch.

To import torch takes a worker longer than anything else of its start but its weights, two seconds, and to import gRPC
and tokenizers a frontend most of its second; every stream waits for it where a process has to be started again. A
forked one has it. What is shared is what was imported; the server has no model, no device, no socket of a client's and
no thread, without which a fork would not be safe.

A forked process ends with its fork server, which nobody else could wait for it in the place of. It knows nothing of
what is forked. The supervisor speaks to it in JSON, one message per packet of an inherited Unix socket
(SOCK_SEQPACKET). End-of-file on it ends the fork server.
"""

import ctypes
import gc
import os
import select
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from pagewire.wire.codec import Count, JsonCodec

_MAX_PACKET_BYTES = 65_536
_PR_SET_PDEATHSIG = 1
_ARG_START, _ARG_END = 47, 48
"""Fields of /proc/PID/stat, from 0: where a command line lies in memory (proc(5))."""


class Fork(msgspec.Struct, frozen=True, tag="fork"):
    """To the fork server: make a child. The packet carries one descriptor, the child's end of its lifeline."""

    launch: Annotated[str, Meta(max_length=4096)]
    """Path of the launch file."""


class Reap(msgspec.Struct, frozen=True, tag="reap"):
    """To the fork server: nobody sends that process a signal any more, so its number may become another's."""

    pid: Count


ToForkServer = Fork | Reap


class Forked(msgspec.Struct, frozen=True, tag="forked"):
    """The answer to a `Fork`, in the order of asking. The process leads a process group."""

    pid: Count


class NotForked(msgspec.Struct, frozen=True, tag="not_forked"):
    """The answer to a `Fork` where there is none: the machine makes no more processes."""

    reason: Annotated[str, Meta(max_length=4096)]


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """A child ended; it is waited for once it is reaped. A negative status is a signal's number."""

    pid: Count
    status: int


FromForkServer = Forked | NotForked | Ended


class ForkedStart(NamedTuple):
    """What a forked process was asked to be."""

    launch_file: Path
    lifeline_fd: int


class ForkServer:
    """Forks processes. `serve` returns once in the server, and once in each of them."""

    def __init__(self, requests_fd: int) -> None:
        """`requests_fd`: the inherited socket to the supervisor."""
        self._requests = socket.socket(fileno=requests_fd)
        self._requests.set_inheritable(False)
        self._pid = os.getpid()
        self._children: set[int] = set()
        """Those that have not ended."""
        self._sends: JsonCodec[FromForkServer] = JsonCodec(FromForkServer)
        self._receives: JsonCodec[ToForkServer] = JsonCodec(ToForkServer)

    def serve(self, import_modules: Callable[[], object]) -> ForkedStart | None:
        """Import what is needed, and fork until the supervisor is gone: then none. In a process that was forked: its
        start."""
        with suppress(Exception):  # whatever is wrong, who is forked says it, and imports the same
            import_modules()
        gc.collect()
        gc.freeze()
        ended, tell_ended = socket.socketpair()
        tell_ended.setblocking(False)
        with ended, tell_ended:
            signal.set_wakeup_fd(tell_ended.fileno(), warn_on_full_buffer=False)
            signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)
            # Who sends it to every process of a service means that they finish what they have, and would end them all.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                readable, _, _ = select.select([self._requests, ended], [], [])
                if ended in readable:
                    ended.recv(_MAX_PACKET_BYTES)
                    self._tell_ends()
                if self._requests not in readable:
                    continue
                packet, descriptors, _, _ = socket.recv_fds(self._requests, _MAX_PACKET_BYTES, 1)
                if not packet:
                    return None
                match self._receives.decode(packet):
                    case Reap(pid):
                        os.waitpid(pid, 0)
                    case Fork(launch):
                        (lifeline_fd,) = descriptors
                        if self._is_forked():
                            return ForkedStart(Path(launch), lifeline_fd)
                        os.close(lifeline_fd)

    def _is_forked(self) -> bool:
        """Fork. True in the forked process, which is then as one that was started by itself."""
        try:
            pid = os.fork()
        except OSError as error:
            self._send(NotForked(str(error)))
            return False
        if pid:
            with suppress(OSError):  # here and there: who sends the group a signal may be faster
                os.setpgid(pid, pid)
            self._children.add(pid)
            self._send(Forked(pid))
            return False
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        self._requests.close()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._pid:  # it ended before we could ask to end with it
            os.kill(os.getpid(), signal.SIGKILL)
        return True

    def _tell_ends(self) -> None:
        for pid in list(self._children):
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                self._children.remove(pid)
                exited = ended.si_code == os.CLD_EXITED
                self._send(Ended(pid, ended.si_status if exited else -ended.si_status))

    def _send(self, message: FromForkServer) -> None:
        with suppress(OSError):  # a supervisor that is gone is noticed where its requests are read
            self._requests.send(self._sends.encode_line(message))


def rename_process(command: Sequence[str], launch_file: Path) -> None:
    """Have `ps` show a forked process's command line, of the interpreter's arguments before `--launch`, in place of the
    fork server's: in its memory, so it can be no longer, and says only the launch file's name where the path does not
    fit.

    Nothing depends on it: where the kernel does not let us, `ps` shows two fork servers, one of which is none.
    """
    with suppress(OSError, ValueError, IndexError):
        interpreter = Path("/proc/self/cmdline").read_bytes().split(b"\0")[0]
        # The second field is a name in parentheses, which may have spaces in it.
        stat = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start, end = int(stat[_ARG_START - 2]), int(stat[_ARG_END - 2])
        for named in (str(launch_file), launch_file.name):
            shown = b"\0".join([interpreter, *map(os.fsencode, (*command, "--launch", named))])
            if len(shown) < end - start:
                with open("/proc/self/mem", "r+b", buffering=0) as memory:
                    memory.seek(start)
                    memory.write(shown.ljust(end - start, b"\0"))
                return
