"""Attacks on the ZeroMQ sockets of a running service: strangers on the socket files, beneath ZeroMQ and with it, and
peers that know the password and send what they should not.

Bytes beneath ZeroMQ follow ZMTP 3.1 (rfc.zeromq.org/spec/37): a greeting of 64 bytes, commands of a handshake, frames
of flags, length and content.
"""

import contextlib
import itertools
import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import zmq
from support.byte_decoders import HELLO, PLAN, SUBMIT
from support.worse_bytes import always, worse

from pagewire.wire.codec import MAX_FRAME_BYTES, Codec, WireError
from pagewire.wire.columns import pack
from pagewire.wire.plan import StepResult
from pagewire.wire.requests import Abort, AbortRequest, FlushCache, FromFrontend, ReadBlocks, Register

KINDS = (zmq.DEALER, zmq.ROUTER, zmq.PUB, zmq.SUB, zmq.PUSH, zmq.PULL, zmq.REQ, zmq.REP, zmq.PAIR, zmq.XPUB, zmq.XSUB)
NAMES = (b"frontend-0:0:0", b"0:0", b"frontend-0:0:1", b"0:1", b"", b"x" * 255, b"\x01")
"""Those of the service's own processes among them."""
MAX_HALF_OPEN = 64
OUTSIDER = 900
"""The first number of a frontend that a peer takes; the service's own has 0."""
DEAF = 800
"""The same of those who never read."""
WAIT_MS = 20


class ZeroMqAttacks:
    """What can be done to the sockets in a runtime directory. Threads may share one."""

    def __init__(self, runtime_dir: Path, pickle: bytes) -> None:
        self._sockets = [str(path) for path in runtime_dir.iterdir() if path.is_socket()]
        launch = json.loads((runtime_dir / "engine-0.json").read_text())
        self._frontends, self._workers = launch["frontends"], launch["workers"]
        self._pickle = pickle
        self._half_open: deque[socket.socket] = deque()
        self._deaf = threading.local()
        self._numbers = itertools.count(OUTSIDER)
        own: Codec[object] = Codec(object)
        queries = (AbortRequest(1, "nobody's", None), FlushCache(2), ReadBlocks(3, 0, 100))
        self._from_frontend = [own.encode(each) for each in (SUBMIT, Abort(pack([1])), *queries)]
        results = (StepResult(epoch, step, pack([1]), 1, 1) for epoch in (0, 1, 1 << 20) for step in (0, 1, 9))
        self._from_worker = [own.encode(each) for each in (HELLO, *results)]
        self._recorded = [own.encode(each) for each in (Register(0, 0), Register(0, 0, 1), Register(0, 1), PLAN)]
        self._recorded += [*self._from_frontend, *self._from_worker]
        self._always = list(always())

    @property
    def all(self) -> list[Callable[[Random], str]]:
        """Each of them."""
        return [self.raw_bytes, self.broken_handshake, self.half_open, self.stranger, self.stranger, self.insider,
                self.insider, self.replay, self.never_reads, self.without_end]  # fmt: skip

    def close(self) -> None:
        """Leave whatever is open."""
        while self._half_open:
            self._half_open.popleft().close()

    # Beneath ZeroMQ

    @contextlib.contextmanager
    def _connected(self, draw: Random) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(draw.choice(self._sockets))
            raw.settimeout(2)
            yield raw

    def raw_bytes(self, draw: Random) -> str:
        """No greeting."""
        with self._connected(draw) as raw, contextlib.suppress(OSError):
            raw.sendall(draw.choice((draw.randbytes(draw.randrange(1, 5000)), self._pickle, b"GET / HTTP/1.1\r\n\r\n")))
            raw.recv(1)
        return "raw bytes"

    def broken_handshake(self, draw: Random) -> str:
        """A greeting, and then what is no handshake."""
        greeting = zmtp_greeting(draw.choice((b"NULL", b"PLAIN", b"CURVE", b"GSSAPI", draw.randbytes(20))))
        behind = draw.choice(
            (
                b"",
                draw.randbytes(draw.randrange(3000)),
                self._pickle,
                zmtp_command(b"HELLO", b"\x05guess\x08password"),
                zmtp_command(b"HELLO", draw.randbytes(draw.randrange(200))),
                zmtp_command(b"READY", draw.randbytes(draw.randrange(200))),
                zmtp_command(b"READY", b"\x08Identity" + struct.pack(">I", 2**31) + b"x"),
                zmtp_command(b"INITIATE", b""),
                zmtp_command(b"READY", b"\x0bSocket-Type\0\0\0\6DEALER") + zmtp_frame(self._pickle),
                zmtp_command(b"ERROR", b"\xff" * 10),
                b"\x02" + struct.pack(">Q", 2**63) + b"x" * 100,
                b"\x06" + struct.pack(">Q", MAX_FRAME_BYTES + 1) + b"x" * 100,
                zmtp_command(b"PING", b"\0\0x" * 10) * 50,
            )
        )
        whole = greeting + behind
        if draw.random() < 0.3:
            whole = whole[: draw.randrange(len(whole))]
        if draw.random() < 0.2:
            whole = worse(whole, draw)
        with self._connected(draw) as raw, contextlib.suppress(OSError):
            raw.sendall(whole)
            raw.settimeout(0.01)
            raw.recv(4096)
        return "broken handshakes"

    def half_open(self, draw: Random) -> str:
        """Half a greeting, and then silence for as long as others come."""
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(draw.choice(self._sockets))
        with contextlib.suppress(OSError):
            raw.sendall(zmtp_greeting(b"PLAIN")[: draw.randrange(65)])
        self._half_open.append(raw)
        while len(self._half_open) > MAX_HALF_OPEN:
            self._half_open.popleft().close()
        return "half-open connections"

    def without_end(self, draw: Random) -> str:
        """A message that says with each of its frames that another follows."""
        with self._connected(draw) as raw, contextlib.suppress(OSError):
            raw.sendall(zmtp_greeting(b"NULL"))
            raw.sendall(zmtp_command(b"READY", b"\x0bSocket-Type\0\0\0\6DEALER"))
            size = draw.choice((0, 1000, 16_384))
            for _ in range(64):
                raw.sendall(zmtp_frame(bytes(size), more=True) * 16)
        return "messages without end"

    # With ZeroMQ

    @contextlib.contextmanager
    def _socket(self, kind: int, endpoint: dict[str, str], name: bytes = b"") -> "Iterator[zmq.Socket[bytes]]":
        made: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
        made.setsockopt(zmq.LINGER, WAIT_MS)
        made.setsockopt(zmq.SNDTIMEO, WAIT_MS)
        if name:
            made.setsockopt(zmq.IDENTITY, name)
        if password := endpoint.get("password"):
            made.setsockopt(zmq.PLAIN_USERNAME, b"x")
            made.setsockopt(zmq.PLAIN_PASSWORD, password.encode())
        with made, contextlib.suppress(zmq.ZMQError):
            made.connect(endpoint["address"])
            yield made

    def _junk(self, draw: Random) -> bytes:
        match draw.randrange(5):
            case 0:
                return self._pickle
            case 1:
                return draw.choice(self._always)
            case 2:
                return draw.choice(self._recorded)
            case _:
                return worse(draw.choice(self._recorded), draw)

    def stranger(self, draw: Random) -> str:
        """Any kind of socket, under any name, with no password or a wrong one."""
        kind = draw.choice(KINDS)
        endpoint = {"address": f"ipc://{draw.choice(self._sockets)}", "password": draw.choice(("", "guess"))}
        with self._socket(kind, endpoint, draw.choice(NAMES)) as peer:
            if kind == zmq.SUB:
                peer.setsockopt(zmq.SUBSCRIBE, draw.randbytes(draw.randrange(2000)))
            for _ in range(20):
                peer.send_multipart([self._junk(draw) for _ in range(draw.choice((1, 1, 1, 2, 3, 9)))])
        return "frames of strangers"

    def insider(self, draw: Random) -> str:
        """A frontend that nobody started, or a rank, which knows the password."""
        number = next(self._numbers)
        is_frontend = draw.random() < 0.7
        frames, endpoint = self._from_worker, self._workers
        if is_frontend:
            frames, endpoint = self._from_frontend, self._frontends
        with self._socket(zmq.DEALER, endpoint, f"insider-{number}".encode()) as peer:
            if is_frontend and draw.random() < 0.8:
                peer.send(Codec[Register](Register).encode(Register(OUTSIDER + number % 100, number)))
            for _ in range(30):
                frame = draw.choice((draw.choice(frames), worse(draw.choice(frames), draw), self._junk(draw)))
                if not _takes_a_place(frame):
                    peer.send_multipart([frame] * draw.choice((1, 1, 1, 1, 2)))
        return "frames of insiders"

    def replay(self, draw: Random) -> str:
        """What a real peer said when it came, said again by somebody else, and then more in its name."""
        endpoint = draw.choice((self._frontends, self._workers))
        with self._socket(zmq.DEALER, endpoint, draw.randbytes(8).replace(b"\0", b"x")) as peer:
            for _ in range(20):
                peer.send(Codec[Register](Register).encode(Register(0, 0)))
                peer.send(draw.choice(self._recorded[4:]))
        return "replays"

    def never_reads(self, draw: Random) -> str:
        """A frontend that asks and asks, and takes no answer, for as long as the attack lasts."""
        peer: zmq.Socket[bytes] | None = getattr(self._deaf, "peer", None)
        if peer is None or draw.random() < 0.001:
            number = next(self._numbers)
            peer = self._deaf.peer = zmq.Context.instance().socket(zmq.DEALER)
            peer.setsockopt(zmq.LINGER, 0)
            peer.setsockopt(zmq.SNDTIMEO, WAIT_MS)
            peer.setsockopt(zmq.RCVHWM, 1)
            peer.setsockopt(zmq.IDENTITY, f"deaf-{number}".encode())
            peer.setsockopt(zmq.PLAIN_USERNAME, b"x")
            peer.setsockopt(zmq.PLAIN_PASSWORD, self._frontends["password"].encode())
            peer.connect(self._frontends["address"])
            peer.send(Codec[Register](Register).encode(Register(DEAF + number % 100, number)))
        with contextlib.suppress(zmq.Again):
            for query in range(100):
                peer.send(Codec[ReadBlocks](ReadBlocks).encode(ReadBlocks(query, 0, 8192)))
        return "requests of peers that never read"


def _takes_a_place(frame: bytes) -> bool:
    """Whether it introduces a later incarnation of the service's own frontend, whose place it would rightly take."""
    try:
        message = Codec[FromFrontend](FromFrontend).decode(frame)
    except WireError:
        return False
    return (
        isinstance(message, Register) and message.frontend == 0 and (message.incarnation, message.connection) > (0, 0)
    )


def zmtp_greeting(mechanism: bytes) -> bytes:
    """Of version 3.1."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism[:20].ljust(20, b"\0") + bytes(32)


def zmtp_command(name: bytes, content: bytes) -> bytes:
    """A short one."""
    whole = bytes([len(name)]) + name + content
    return b"\x04" + bytes([min(len(whole), 255)]) + whole


def zmtp_frame(content: bytes, more: bool = False) -> bytes:
    """Of a message."""
    return bytes([2 | more]) + struct.pack(">Q", len(content)) + content
