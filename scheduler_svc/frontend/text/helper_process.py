"""Helper processes, from inside: untrusted work in a process with limits, one request after the other.

A request comes as a frame on standard input and its answer goes as one to standard output: 4 bytes of length,
little-endian, then msgpack. The process ends at end-of-file, so it cannot outlive its frontend by more than one time
limit. It knows neither tokens nor gRPC, nor what the work is.

The process prepares itself and then answers from a child, a fork of what is prepared. The kernel ends the child when
work takes too long (a timer's signal with its default action); then an empty frame goes as the answer, and the next
request finds another child. To start and to prepare a process anew would take some half a second of a processor from
whoever streams, each time. A child that ends otherwise, at the memory limit for instance, ends its parent alike, and
the frontend starts another process (`helper_pool`).
"""

import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import BinaryIO, NoReturn, TypeVar

import msgspec

from pagewire.wire.codec import Codec, WireError

FRAME_HEADER = struct.Struct("<I")
TIME_UP = (-signal.SIGALRM, -signal.SIGPROF)
"""Exit statuses of a process whose own timer ended it."""
_PR_SET_PDEATHSIG = 1

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    """What the first frame gave is of use; work may follow."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The work cannot be done."""

    message: str


class Invalid(msgspec.Struct, frozen=True, tag="invalid"):
    """A field of the request is wrong."""

    field: str
    problem: str


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next frame, or none at the end of the stream."""
    header = stream.read(FRAME_HEADER.size)
    if len(header) < FRAME_HEADER.size:
        return None
    (length,) = FRAME_HEADER.unpack(header)
    frame = stream.read(length)
    return frame if len(frame) == length else None


def serve(incoming: Codec[Request], outgoing: Codec[Answer], answer: Callable[[Request], Answer]) -> None:
    """Answer until standard input ends, the first request in this process and the others in children of it. What
    `answer` begins with `limit_time` or `limit_cpu_time` counts until it returns: the answer's writing is not the
    work's time, as the frontend may be busy."""
    # Only the frontend decides when this process ends; a terminal's Ctrl-C goes to the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for timer in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(timer, signal.SIG_DFL)

    def answer_next() -> bool:
        """Whether there was a request."""
        frame = read_frame(sys.stdin.buffer)
        if frame is None:
            return False
        try:
            request = incoming.decode(frame)
        except WireError as error:
            sys.exit(f"helper process: {error}")
        body = outgoing.encode(answer(request))
        limit_time(0)
        limit_cpu_time(0)
        _write(body)
        return True

    if not answer_next():
        return
    own_pid = os.getpid()
    while child := os.fork():
        _, status = os.waitpid(child, 0)
        exit_code = os.waitstatus_to_exitcode(status)
        if exit_code not in TIME_UP:
            _end_with(exit_code)
        _write(b"")
    _end_with_parent(own_pid)
    while answer_next():
        pass


def _write(body: bytes) -> None:
    try:
        sys.stdout.buffer.write(FRAME_HEADER.pack(len(body)) + body)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os._exit(0)  # the frontend is gone; to end in the usual way would be to flush once more


def _end_with(exit_code: int) -> NoReturn:
    """End as a child did."""
    if exit_code < 0:
        os.kill(os.getpid(), -exit_code)
    os._exit(abs(exit_code))


def _end_with_parent(parent: int) -> None:
    """This process is killed when its parent ends, of which its frontend knows. Linux only: elsewhere it ends when its
    input does."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def limit_time(seconds: float) -> None:
    """End this process after so long; 0: do not."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def limit_cpu_time(seconds: float) -> None:
    """End this process once its threads have had so much of a processor; 0: do not."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def limit_memory(beyond_bytes: int) -> None:
    """Address space beyond what the process has now. Linux only: elsewhere it is no measure of memory, and the time
    limit alone has to do."""
    if sys.platform != "linux":
        return
    with open("/proc/self/statm") as statm:
        present = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (present + beyond_bytes, present + beyond_bytes))
