"""Binding the engine's two ROUTER sockets: bounds, and CURVE where the address crosses hosts.

Owns no state of a connection; the links do.
"""

import os
from types import TracebackType

import zmq
import zmq.auth
import zmq.auth.thread

from pagewire.scheduler_svc.startup_errors import StartupError
from pagewire.wire.codec import MAX_FRAME_BYTES
from pagewire.wire.launch import CurveKeys, Endpoint

HIGH_WATER_MARK = 16_384
"""Messages that may wait for one peer; a peer that leaves more unread is treated as gone."""


class _PeerKeys:
    """Tells ZeroMQ's authenticator which client keys may connect."""

    def __init__(self, keys: CurveKeys) -> None:
        self._allowed = frozenset(key.encode() for key in keys.peers_public)

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a client with this Z85 public key may connect."""
        return key in self._allowed


class RouterSockets:
    """A context of its own, and the authenticator that CURVE sockets in it need."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._authenticator: zmq.auth.thread.ThreadAuthenticator | None = None

    def bind(self, endpoint: Endpoint) -> zmq.Socket[bytes]:
        """A bound ROUTER that refuses over-long frames and reports unreachable peers instead of dropping silently.

        Raises StartupError where the address cannot be listened on."""
        router = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        router.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        router.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
        router.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        if endpoint.curve is not None:
            self._require_curve(router, endpoint.curve)
        # The socket file of an engine that was killed would still be there.
        if endpoint.address.startswith("ipc://") and os.path.exists(path := endpoint.address.removeprefix("ipc://")):
            os.unlink(path)
        try:
            router.bind(endpoint.address)
        except zmq.ZMQError as error:
            raise StartupError(f"cannot listen on {endpoint.address}: {error.strerror}") from error
        return router

    def _require_curve(self, router: zmq.Socket[bytes], keys: CurveKeys) -> None:
        if self._authenticator is None:
            self._authenticator = zmq.auth.thread.ThreadAuthenticator(self._context)
            self._authenticator.start()
        self._authenticator.configure_curve_callback(domain="*", credentials_provider=_PeerKeys(keys))
        router.curve_server = True
        router.curve_publickey = keys.own_public.encode()
        router.curve_secretkey = keys.own_secret.encode()

    def __enter__(self) -> "RouterSockets":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.destroy(linger=0)
