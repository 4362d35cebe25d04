"""Router sockets: the engine's two, bound, and who may connect to them.

A peer shows what lets it in before ZeroMQ takes a message from it: between hosts a CURVE key, on this host the password
of this run of the server, which stands in launch files that only this user can read. What a stranger sends ends in the
handshake. Inside it could not be kept out: a name that is another's takes that one's connection (ROUTER_HANDOVER), an
introduction its place, and of a message of frames without end ZeroMQ keeps every one.

A thread answers ZeroMQ's question (ZAP, rfc.zeromq.org/spec/27) and counts whom it refused. pyzmq's
`ThreadAuthenticator` lost: it counts nothing, compares passwords with ==, and runs an event loop.
"""

import hmac
import os
import threading
from types import TracebackType
from typing import NamedTuple

import zmq
from zmq.utils import z85

from pagewire.scheduler_svc.startup_errors import StartupError
from pagewire.wire.codec import MAX_FRAME_BYTES
from pagewire.wire.launch import Endpoint

HIGH_WATER_MARK = 16_384
"""Messages that may wait for one peer; a peer that leaves more unread is treated as gone."""

_ZAP = "inproc://zeromq.zap.01"
_VERSION = b"1.0"


class Credentials(NamedTuple):
    """What lets a peer in at one socket."""

    password: bytes | None = None
    curve_keys: frozenset[bytes] = frozenset()
    """In Z85."""
    is_open: bool = False
    """Whoever shows nothing may come. libzmq then still keeps out those who do not speak ZMTP 3, which every library of
    the last ten years does: to one that sent a publisher anything else it lost 11 KB a connection (4.3.5)."""

    def admit(self, mechanism: bytes, shown: list[bytes]) -> bool:
        """Whether a peer that shows this may connect."""
        match mechanism, shown:
            case b"PLAIN", [_, password]:
                return self.password is not None and hmac.compare_digest(password, self.password)
            case b"CURVE", [key]:
                return z85.encode(key) in self.curve_keys
            case b"NULL", []:
                return self.is_open
        return False


class Doorkeeper:
    """Answers for the sockets of one context who may connect. A thread from the first socket on, until `close`."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self._context = context
        self._credentials: dict[bytes, Credentials] = {}
        self._refused: dict[bytes, int] = {}
        """By border. The thread's own to write."""
        self._thread: threading.Thread | None = None
        self._stopped, self._stopper = os.pipe2(os.O_CLOEXEC)

    def guard(self, socket: "zmq.Socket[bytes]", border: str, credentials: Credentials) -> None:
        """Keep a socket that is not bound yet; `border` names it among those of its context."""
        self._credentials[border.encode()] = credentials
        socket.setsockopt(zmq.ZAP_DOMAIN, border.encode())
        if self._thread is None:
            questions = self._context.socket(zmq.REP)
            questions.setsockopt(zmq.LINGER, 0)
            questions.bind(_ZAP)
            self._thread = threading.Thread(target=self._answer, args=[questions], name="zap", daemon=True)
            self._thread.start()

    def refused(self, border: str) -> int:
        """Connections to that socket that were not let in, so far."""
        return self._refused.get(border.encode(), 0)

    def close(self) -> None:
        """End the thread."""
        os.close(self._stopper)
        if self._thread is not None:
            self._thread.join()
        os.close(self._stopped)

    # The thread's own

    def _answer(self, questions: "zmq.Socket[bytes]") -> None:
        """ZeroMQ asks itself, so the frames are what its specification says."""
        poller = zmq.Poller()
        poller.register(questions, zmq.POLLIN)
        poller.register(self._stopped, zmq.POLLIN)
        with questions:
            while self._stopped not in dict(poller.poll()):
                _, request_id, border, _, _, mechanism, *shown = questions.recv_multipart()
                if self._credentials[border].admit(mechanism, shown):
                    answer = [b"200", b"OK", b"", b""]
                else:
                    self._refused[border] = self._refused.get(border, 0) + 1
                    answer = [b"400", b"no", b"", b""]
                questions.send_multipart([_VERSION, request_id, *answer])


class RouterSockets:
    """A context of its own, its ROUTER sockets, and who lets peers in where they have to show something."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._doorkeeper = Doorkeeper(self._context)

    def bind(self, endpoint: Endpoint, border: str = "") -> zmq.Socket[bytes]:
        """A bound ROUTER that refuses over-long frames and reports unreachable peers instead of dropping silently.
        `border` names it among those of this context.

        Raises StartupError where the address cannot be listened on."""
        router = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        router.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        router.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
        router.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        if (curve := endpoint.curve) is not None:
            keys = frozenset(key.encode() for key in curve.peers_public)
            self._doorkeeper.guard(router, border, Credentials(curve_keys=keys))
            router.curve_server = True
            router.curve_publickey = curve.own_public.encode()
            router.curve_secretkey = curve.own_secret.encode()
        elif endpoint.password is not None:
            self._doorkeeper.guard(router, border, Credentials(password=endpoint.password.encode()))
            router.setsockopt(zmq.PLAIN_SERVER, 1)
        # The socket file of an engine that was killed would still be there.
        if endpoint.address.startswith("ipc://") and os.path.exists(path := endpoint.address.removeprefix("ipc://")):
            os.unlink(path)
        try:
            router.bind(endpoint.address)
        except zmq.ZMQError as error:
            raise StartupError(f"cannot listen on {endpoint.address}: {error.strerror}") from error
        return router

    def refused(self, border: str) -> int:
        """Connections to that socket that were not let in, so far."""
        return self._doorkeeper.refused(border)

    def __enter__(self) -> "RouterSockets":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._doorkeeper.close()
        self._context.destroy(linger=0)
