"""Attacks with messages: bytes that are no message, or one that nobody sends, for every method that reflection lists;
and bodies of the same kind for the gateway.

Wrong messages are made of right ones (protobuf.dev/programming-guides/encoding): a method's own fields by its
descriptor, then something wrong with them on the wire.
"""

import contextlib
import json
import socket
import struct
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from support.service import LIMIT_S, Service
from support.worse_bytes import always, worse

OWN = ("pagewire.", "vllm.grpc.engine.")
"""Packages of services whose errors are ours: none of them is a bug's."""
BUGS = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS)
DRAIN = "/pagewire.v1.AdminService/Drain"
CALL_S = 0.5
MOST_RECEIVED = 4
TEXTS = ("", "hello", "x" * 300, "\x00", "é" * 9, "{", '{"a": 1}', "[" * 200, "(a+)+$", "start: /a/", "{{ 1 }}", "-1")
NUMBERS = (0, 1, 2, 5, 127, 128, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, -1, -(2**31))
FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 1e38, 1e-45, float("nan"), float("inf"), float("-inf"))


class ProtobufAttacks:
    """What can be sent to every method of every listener, and to the gateway. Threads may share one."""

    def __init__(self, service: Service, pickle: bytes) -> None:
        self._pickle = pickle
        self._methods: list[tuple[grpc.Channel, str, type[Message]]] = []
        self.services: set[str] = set()
        for channel in (service.channel, service.admin_channel):
            database = ProtoReflectionDescriptorDatabase(channel)
            pool = DescriptorPool(database)
            for name in database.get_services():
                self.services.add(name)
                for method in pool.FindServiceByName(name).methods:
                    self._methods.append((channel, f"/{name}/{method.name}", GetMessageClass(method.input_type)))
        host, _, port = service.said["openai_url"].removeprefix("http://").partition("/")[0].rpartition(":")
        self._gateway = (host, int(port))
        self._always = list(always())

    @property
    def all(self) -> list[Callable[[Random], str]]:
        """Each of them."""
        return [self.bytes_of_no_message, self.wrong_on_the_wire, self.wrong_on_the_wire, self.odd_values,
                self.odd_values, self.deep, self.bodies, self.no_http]  # fmt: skip

    # Messages

    def _call(self, draw: Random, made: Callable[[type[Message]], bytes]) -> None:
        channel, path, kind = draw.choice(self._methods)
        frame = made(kind)
        if path == DRAIN and _is_whole(frame, kind):
            return  # what it asks for would be done
        send = channel.stream_stream(path)
        call = send(iter([frame] * draw.choice((1, 1, 1, 1, 0, 2))), timeout=CALL_S)
        with contextlib.suppress(grpc.RpcError, StopIteration):
            for _ in range(MOST_RECEIVED):
                next(call)
        call.cancel()
        code = call.code()
        if path.startswith(tuple(f"/{package}" for package in OWN)):
            assert code not in BUGS, f"{path} with {frame[:200]!r}: {code} {call.details()}"

    def bytes_of_no_message(self, draw: Random) -> str:
        """Anything."""
        junk = draw.choice((self._pickle, draw.randbytes(draw.randrange(500)), draw.choice(self._always)))
        self._call(draw, lambda kind: junk)
        return "bytes of no message"

    def odd_values(self, draw: Random) -> str:
        """A message with any of its fields, and any value in each."""
        self._call(draw, lambda kind: filled(kind.DESCRIPTOR, draw, 4))
        return "odd values"

    def wrong_on_the_wire(self, draw: Random) -> str:
        """The same with something wrong in its bytes."""
        self._call(draw, lambda kind: _wrong(filled(kind.DESCRIPTOR, draw, 3), kind.DESCRIPTOR, draw))
        return "messages that are wrong on the wire"

    def deep(self, draw: Random) -> str:
        """Messages within messages, known and unknown, and groups."""
        depth = draw.choice((50, 99, 101, 1000, 20_000))

        def made(kind: type[Message]) -> bytes:
            fields = [field for field in kind.DESCRIPTOR.fields if field.message_type is not None]
            number = draw.choice(fields).number if fields and draw.random() < 0.7 else 1000
            if draw.random() < 0.3:
                return tag(number, 3) * depth + tag(number, 4) * draw.choice((depth, 0))
            content = b""
            for _ in range(min(depth, 3000)):
                content = tag(number, 2) + varint(len(content)) + content
            return content

        self._call(draw, made)
        return "deep messages"

    # The gateway

    @contextlib.contextmanager
    def _http(self) -> Iterator[socket.socket]:
        with socket.create_connection(self._gateway, LIMIT_S) as connection:
            connection.settimeout(LIMIT_S)
            with contextlib.suppress(OSError):
                yield connection

    def bodies(self, draw: Random) -> str:
        """Bodies of OpenAI's endpoints that are no JSON, or say what nobody would."""
        chat: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
        chat |= draw.choice(({}, {"stream": True}, {"n": 2}, {"tools": [{"type": "function"}]}, {"stop": ["a"]}))
        for _ in range(draw.randrange(3)):
            key = draw.choice([*chat, "temperature", "top_p", "seed", "response_format", "logit_bias", "logprobs"])
            chat[key] = draw.choice(
                (*TEXTS, *NUMBERS, None, True, [], {}, [[]], {"type": "json_object"}, [chat["model"]])
            )
        body = json.dumps(chat).encode()
        body = draw.choice((body, worse(body, draw), draw.choice(self._always), self._pickle))
        path = draw.choice(
            (b"/v1/chat/completions", b"/v1/completions", b"/v1/models/x", b"/v1/embeddings", b"/health")
        )
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n" % path
        with self._http() as connection:
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            answer = connection.recv(65_536)
            status = answer.split(b" ", 2)[1:2]
            assert status != [b"500"], f"{path!r} with {body[:200]!r}: {answer[:500]!r}"
        return "bodies for the gateway"

    def no_http(self, draw: Random) -> str:
        """Requests that lie about themselves, or are none."""
        line = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
        with self._http() as connection:
            connection.sendall(
                draw.choice(
                    (
                        draw.randbytes(draw.randrange(1, 3000)),
                        self._pickle,
                        line + b"Content-Length: 99999999999\r\n\r\n{",
                        line + b"Content-Length: -1\r\n\r\n{}",
                        line + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFF\r\nx",
                        line + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
                        line + b"X-Large: " + b"v" * 200_000 + b"\r\n\r\n",
                        line + b"X: v\r\n" * 20_000 + b"\r\n",
                        line + b"Expect: 100-continue\r\n\r\n",
                        line[: draw.randrange(len(line))],
                        b"GET /engine/events HTTP/1.1\r\nHost: x\r\n\r\n",
                        b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n" * 50,
                        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                    )
                )
            )
            connection.settimeout(0.05)
            connection.recv(4096)
        return "requests that are none"


def varint(value: int) -> bytes:
    """As protobuf writes it."""
    encoded = []
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def tag(number: int, wire_type: int) -> bytes:
    """In front of a field."""
    return varint(number << 3 | wire_type)


def filled(descriptor: Descriptor, draw: Random, depth: int) -> bytes:
    """Bytes of a message with some of its fields."""
    parts = []
    for field in descriptor.fields:
        if draw.random() < 0.45:
            continue
        count = draw.choice((0, 1, 2, 5)) if field.is_repeated else 1
        parts += [_field(field, draw, depth) for _ in range(count)]
    return b"".join(parts)


def _field(field: FieldDescriptor, draw: Random, depth: int) -> bytes:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        content = filled(field.message_type, draw, depth - 1) if depth else b""
        return tag(field.number, 2) + varint(len(content)) + content
    if kind == FieldDescriptor.CPPTYPE_STRING:
        content = draw.choice(TEXTS).encode()
        return tag(field.number, 2) + varint(len(content)) + content
    if kind == FieldDescriptor.CPPTYPE_DOUBLE:
        return tag(field.number, 1) + struct.pack("<d", draw.choice(FLOATS))
    if kind == FieldDescriptor.CPPTYPE_FLOAT:
        return tag(field.number, 5) + struct.pack("<f", draw.choice(FLOATS))
    return tag(field.number, 0) + varint(draw.choice(NUMBERS) & 2**64 - 1)


def _wrong(content: bytes, descriptor: Descriptor, draw: Random) -> bytes:
    number = draw.choice([field.number for field in descriptor.fields] or [1])
    match draw.randrange(9):
        case 0:
            return content[: draw.randrange(len(content) + 1)]
        case 1:
            return content + tag(number, 2) + varint(draw.choice((2**31, 2**32 - 1, 2**63, 10**6))) + b"x"
        case 2:
            return content + tag(number, draw.randrange(8)) + draw.randbytes(8)
        case 3:
            return content + tag(draw.choice((0, 999, 2**29 - 1, 19_000)), draw.choice((0, 2))) + b"\1x"
        case 4:
            return content + tag(number, 0) + b"\xff" * 11
        case 5:
            return content + tag(number, 2) + b"\3\xff\xfe\xfd"
        case 6:
            return content * draw.choice((2, 50))
        case 7:
            return content + (tag(999, 0) + b"\1") * 10_000
        case _:
            return worse(content, draw)


def _is_whole(frame: bytes, kind: type[Message]) -> bool:
    try:
        kind.FromString(frame)
    except DecodeError:
        return False
    return True
