"""Links: the engine's two ROUTER sockets, who is at the other end of each, and the way to and from them.

A link owns which identity each peer's number stands for. A peer introduces itself with a message that gives its number
and its incarnation, the same for as long as it lives. A later incarnation takes an earlier one's place. An earlier one
takes that of a later one only where the later cannot be reached any more: what a process that ended still had under way
must not come between, and a wrong number must not keep the right one out for good. What does not decode, or comes from
nobody who is introduced, is counted and dropped; nothing raises past `receive`.

A link knows neither sequences nor plans.
"""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, NamedTuple, TypeVar

import zmq
import zmq.auth
import zmq.auth.thread

from pagewire.scheduler_svc.limited_log import LimitedLog
from pagewire.scheduler_svc.startup_errors import StartupError
from pagewire.wire.codec import MAX_FRAME_BYTES, Codec, WireError
from pagewire.wire.launch import CurveKeys, Endpoint
from pagewire.wire.plan import PROTOCOL_VERSION, FromWorker, ToWorker, WorkerHello
from pagewire.wire.requests import FromFrontend, Register, ToFrontend

_log = logging.getLogger(__name__)

HIGH_WATER_MARK = 16_384
"""Messages that may wait for one peer; a peer that leaves more unread is treated as gone."""

_MAX_FRAMES_PER_WAKE = 1_024
"""Most frames read before the loop turns to its other duties."""

_MORE_FOLLOWS = zmq.NOBLOCK | zmq.SNDMORE

Sent = TypeVar("Sent")
Received = TypeVar("Received")


class Introduction(NamedTuple):
    """Who a peer says that it is."""

    number: int
    incarnation: int


class Peers(ABC, Generic[Sent, Received]):
    """Peers of one kind, by number. A kind says how its peers introduce themselves, and what sending to them means."""

    def __init__(self, router: zmq.Socket[bytes], sends: object, receives: object) -> None:
        """`sends` and `receives` are the types of messages."""
        self.socket = router
        """For pollers."""
        self.dropped_frames = 0
        self._log = LimitedLog(_log)
        self._readable = [(router, zmq.POLLIN)]
        self._outgoing: Codec[Sent] = Codec(sends)
        self._incoming: Codec[Received] = Codec(receives)
        self._identities: dict[int, bytes] = {}
        self._incarnations: dict[int, int] = {}

    def receive(self) -> Iterator[tuple[int, Received]]:
        """(number, message) for everything that has come, introductions among it, without waiting."""
        for _ in range(_MAX_FRAMES_PER_WAKE):
            try:
                identity = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            # A ROUTER puts the sender's identity before every message, so there is another frame.
            frame = self.socket.recv(copy=False)
            arrival = None if frame.more else self._understand(identity, frame.bytes)
            while frame.more:
                frame = self.socket.recv(copy=False)
            if arrival is None:
                self.dropped_frames += 1
            else:
                yield arrival
            # One message is the rule. To ask whether another is there takes a quarter of the exception's time.
            if not zmq.zmq_poll(self._readable, 0):
                return

    def forget(self, number: int) -> None:
        """That process ended, or is as good as: nothing from it counts any more."""
        self._identities.pop(number, None)

    @abstractmethod
    def _introduction(self, message: Received) -> Introduction | None:
        """What an introduction says; none for any other message."""

    def _post(self, number: int, frame: bytes) -> None:
        """Send without waiting. Raises zmq.ZMQError for a peer that cannot be reached or leaves too much unread."""
        self.socket.send(self._identities[number], _MORE_FOLLOWS)
        self.socket.send(frame, zmq.NOBLOCK)

    def _understand(self, identity: bytes, frame: bytes) -> tuple[int, Received] | None:
        try:
            message = self._incoming.decode(frame)
        except WireError as error:
            self._log.warning("a frame was dropped: %s", error)
            return None
        introduction = self._introduction(message)
        if introduction is None:
            for number, known in self._identities.items():
                if known == identity:
                    return number, message
            return None
        number, incarnation = introduction
        if not self._admits(identity, introduction):
            self._log.warning("peer %d introduced itself as incarnation %d, and is not let in", number, incarnation)
            return None
        self._incarnations[number] = incarnation
        self._identities[number] = identity
        return number, message

    def _admits(self, identity: bytes, introduction: Introduction) -> bool:
        for number, known in self._identities.items():
            if known == identity and introduction != (number, self._incarnations[number]):
                return False  # it is somebody else already
        number, incarnation = introduction
        return incarnation >= self._incarnations.get(number, 0) or not self._is_reachable(number)

    def _is_reachable(self, number: int) -> bool:
        """Whether that peer is still there. Asked by an empty message, which it drops: ZeroMQ tells no other way."""
        if number not in self._identities:
            return False
        try:
            self._post(number, b"")
        except zmq.ZMQError:
            return False
        return True


class FrontendLink(Peers[ToFrontend, FromFrontend]):
    """Talks to each registered frontend. One that cannot be reached, or leaves more unread than the high-water mark, is
    reported as gone: it must never hold the engine."""

    def __init__(self, router: zmq.Socket[bytes]) -> None:
        super().__init__(router, ToFrontend, FromFrontend)
        self._gone: set[int] = set()

    def _introduction(self, message: FromFrontend) -> Introduction | None:
        return Introduction(message.frontend, message.incarnation) if isinstance(message, Register) else None

    def send(self, frontend: int, message: ToFrontend) -> None:
        """Send to one frontend, without waiting; one that is not registered gets nothing."""
        if frontend not in self._identities:
            return
        try:
            self._post(frontend, self._outgoing.encode(message))
        except zmq.ZMQError as error:
            self._log.warning("frontend %d cannot be reached, so its streams end: %s", frontend, error)
            self.forget(frontend)
            self._gone.add(frontend)

    def broadcast(self, message: ToFrontend) -> None:
        """Send to every registered frontend."""
        for frontend in list(self._identities):
            self.send(frontend, message)

    def take_gone(self) -> set[int]:
        """Frontends found unreachable since the last call."""
        gone, self._gone = self._gone, set()
        return gone


class WorkerLink(Peers[ToWorker, FromWorker]):
    """Talks to every rank that said hello; ranks get the same bytes."""

    def __init__(self, router: zmq.Socket[bytes], refusal: Callable[[WorkerHello], str | None]) -> None:
        """`refusal` says why a rank cannot be one of ours; such a rank takes nobody's place."""
        super().__init__(router, ToWorker, FromWorker)
        self._refusal = refusal

    def _introduction(self, message: FromWorker) -> Introduction | None:
        if not isinstance(message, WorkerHello):
            return None
        if message.protocol_version != PROTOCOL_VERSION:
            self._log.error(
                "a worker speaks protocol %d; this engine speaks %d", message.protocol_version, PROTOCOL_VERSION
            )
            return None
        if (refusal := self._refusal(message)) is not None:
            self._log.error("a worker is refused: %s", refusal)
            return None
        return Introduction(message.rank, message.incarnation)

    def send(self, message: ToWorker) -> None:
        """Send to every rank, without waiting."""
        frame = self._outgoing.encode(message)
        for rank in self._identities:
            try:
                self._post(rank, frame)
            except zmq.ZMQError as error:
                # The supervisor notices a dead worker by itself and tells the loop.
                self._log.warning("rank %d cannot be reached: %s", rank, error)


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
