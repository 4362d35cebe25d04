"""Listeners: gRPC servers, every option in so many words, and the address that was bound.

A process without a free descriptor can neither take a connection nor start a helper, so what its own work needs is set
apart of those that it may have. It knows no service. grpc's own defaults are not relied on, because they differ between
versions and are no decision.
"""

import logging
import resource
import socket
from collections.abc import Sequence
from typing import Any, cast

import grpc
import grpc.aio._server
from grpc._cython import cygrpc

from pagewire.scheduler_svc.frontend.rpc.tls import Tls
from pagewire.scheduler_svc.launch import ConnectionLimits
from pagewire.scheduler_svc.startup_errors import StartupError

_log = logging.getLogger(__name__)
_MAX_SENT_MESSAGE_BYTES = 64 * 1024 * 1024
"""A whole answer of Generate: 16 outputs of 100k tokens are 30 MB."""
_MAX_METADATA_BYTES = 16 * 1024
_MAX_STREAMS_PER_CONNECTION = 4096
_MAX_UNREAD_BYTES_PER_STREAM = 64 * 1024
_MAX_PENDING_S = 24 * 3600
_MIN_PING_INTERVAL_MS = 10_000
_KEEPALIVE_INTERVAL_MS = 60_000
_KEEPALIVE_TIMEOUT_MS = 20_000
_HANDSHAKE_TIMEOUT_MS = 20_000
_NEVER_MS = 2**31 - 1
"""gRPC's word for no limit."""
_WANTED_DESCRIPTORS = 1 << 20
"""Where there is no hard limit: none is needed either, and some libraries walk through all that there may be."""
_OWN_DESCRIPTORS = 128
"""Listeners, the engine, helper processes and their pipes."""
ADMIN_CONNECTIONS = 64
_LEAST_CONNECTIONS = 16


class ListenError(StartupError):
    """An address cannot be listened on; the message names it."""


def create_server(
    max_message_bytes: int,
    reuse_port: bool,
    connections: ConnectionLimits,
    interceptors: Sequence["grpc.aio.ServerInterceptor[Any, Any]"],
) -> grpc.aio.Server:
    """A server with bounds on messages, metadata, connections, streams and pings."""
    options: list[tuple[str, int]] = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", _MAX_SENT_MESSAGE_BYTES),
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", _MAX_STREAMS_PER_CONNECTION),
        # Calls that arrive while the event loop is busy wait in grpc for their handler. It would end them without a
        # word, some from 1,000 on, all from 3,000 on and after 30 s; the boundary refuses those that are too many. Of
        # each method as many may wait as one connection can have: each takes 14 KB, also one that its client has given
        # up, and rapid resets came to 8 GB in 25 s where a million could wait. Beyond what the event loop takes, 14,000
        # a second, they keep new calls of others out, whatever the number; what runs goes on.
        ("grpc.server.max_pending_requests", _MAX_STREAMS_PER_CONNECTION),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_STREAMS_PER_CONNECTION),
        ("grpc.server_max_unrequested_time_in_server", _MAX_PENDING_S),
        # Linux would otherwise share the port with any process of the same user, ours of yesterday included.
        ("grpc.so_reuseport", int(reuse_port)),
        # What nobody has asked for yet is held up to this at the client, however fast the connection: a message that is
        # asked for gets a window of its size.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _MAX_UNREAD_BYTES_PER_STREAM),
        # Whoever connects and then says nothing goes before long; who has spoken may be idle for longer.
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_allowed_incoming_connections", connections.max_connections),
        ("grpc.max_connection_idle_ms", _limit_ms(connections.max_idle_s)),
        ("grpc.max_connection_age_ms", _limit_ms(connections.max_age_s)),
        ("grpc.max_connection_age_grace_ms", round(connections.age_grace_s * 1000)),
        # A connection whose other end is gone is found, and its sequences are freed.
        ("grpc.keepalive_time_ms", _KEEPALIVE_INTERVAL_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        # A client that pings more often than this is disconnected after two warnings.
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
        ("grpc.http2.max_ping_strikes", 2),
    ]
    return cast(grpc.aio.Server, _Server(interceptors, options))


class _Server(grpc.aio._server.Server):
    """`grpc.aio.server`, but for who takes calls of unknown methods."""

    def __init__(
        self, interceptors: "Sequence[grpc.aio.ServerInterceptor[Any, Any]]", options: Sequence[tuple[str, int]]
    ) -> None:
        self._loop = cygrpc.get_working_loop()
        self._server = _Calls(self._loop, tuple(interceptors), tuple(options))


class _Calls(cygrpc.AioServer):  # type: ignore[misc]  # the same
    """Takes calls as grpc does, but for those of methods that nobody has registered.

    grpc's own loop decodes their names and is ended by one that is not UTF-8: every stream is cut then, nobody listens
    any more, and the process lives on (grpcio 1.85.1; a name is whatever bytes a stranger writes). So they never come
    to that loop; they are answered as it would, without their names being looked at.
    """

    def __init__(self, loop: Any, interceptors: tuple[Any, ...], options: tuple[tuple[str, int], ...]) -> None:
        if not hasattr(cygrpc.AioServer, "_request_registered_call"):
            raise ListenError(
                f"grpcio {grpc.__version__} takes every call as one of an unknown method; 1.85.1 does not"
            )
        super().__init__(loop, None, (), interceptors, options, None)
        self._own_loop = loop
        self._own_interceptors = interceptors
        self._no_methods = cygrpc._MethodResolver([], {})
        self._unknown_calls: set[Any] = set()

    async def _request_call(self) -> Any:
        """For grpc's loop: the next call of an unknown method. There is never one."""
        while True:
            state = await super()._request_call()
            refusal = cygrpc._handle_rpc("", self._no_methods, self._own_interceptors, state, self._own_loop, False)
            call = self._own_loop.create_task(cygrpc._schedule_rpc_coro(refusal, state, self._own_loop, ""))
            self._unknown_calls.add(call)
            call.add_done_callback(self._unknown_calls.discard)


def _limit_ms(limit_s: float) -> int:
    return round(limit_s * 1000) or _NEVER_MS


def bind(server: grpc.aio.Server, address: str, tls: Tls | None) -> str:
    """Listen on host:port or unix:/path; returns the address with its real port. Raises ListenError."""
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, tls.credentials())
    except RuntimeError as error:
        raise ListenError(f"cannot listen on {address}: {error}") from error
    if address.startswith("unix:"):
        return address
    host, _, _ = address.rpartition(":")
    return f"{host}:{port}"


def raise_descriptor_limit() -> int:
    """Raise the soft limit as far as the hard one allows; returns what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _WANTED_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return _WANTED_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def connections_within(max_connections: int, max_descriptors: int) -> int:
    """How many connections the public listener may take of those that it was told."""
    room = max(_LEAST_CONNECTIONS, max_descriptors - _OWN_DESCRIPTORS - ADMIN_CONNECTIONS)
    if room < max_connections:
        _log.warning(
            "at most %d connections are taken, and not max_connections = %d: this process may have %d descriptors "
            "(ulimit -Hn, LimitNOFILE)",
            room,
            max_connections,
            max_descriptors,
        )
    return min(room, max_connections)


def connections_of_each(max_connections: int, address: str) -> int:
    """How many each of the addresses may take that gRPC binds for one: it counts them apart."""
    host = address.rpartition(":")[0].strip("[]")
    if address.startswith("unix:"):
        return max_connections
    if host.lower() == "localhost":  # both loopbacks, whatever the system's own resolver says
        return max(1, max_connections // 2)
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # listening will say what is wrong with it
        return max_connections
    return max(1, max_connections // len({address for *_, address in found}))
