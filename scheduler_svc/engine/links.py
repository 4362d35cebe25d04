"""Links: the engine's two ROUTER sockets, who is at the other end of each, and the way to and from them.

A link owns which identity each peer's number stands for. A peer introduces itself with a message that gives its number,
its incarnation, the same for as long as it lives, and how often it has connected anew. A later one takes an earlier
one's place. An earlier one, or the same once more from somebody else, takes it only where the later cannot be reached
any more: what a process that ended still had under way must not come between, a frame that is sent again must not take
a place, and a wrong number must not keep the right one out for good. What does not decode, or comes from nobody who is
introduced, is dropped and counted by kind; nothing raises past `receive`.

A link knows neither sequences nor plans.
"""

import enum
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

import zmq

from pagewire.scheduler_svc.limited_log import LimitedLog
from pagewire.wire.codec import Codec, WireError
from pagewire.wire.plan import PROTOCOL_VERSION, FromWorker, ToWorker, WorkerHello
from pagewire.wire.requests import FromFrontend, Register, ToFrontend

_log = logging.getLogger(__name__)

_MAX_FRAMES_PER_WAKE = 1_024
"""Most frames read before the loop turns to its other duties."""

_MORE_FOLLOWS = zmq.NOBLOCK | zmq.SNDMORE

Sent = TypeVar("Sent")
Received = TypeVar("Received")


class Introduction(NamedTuple):
    """Who a peer says that it is."""

    number: int
    incarnation: int
    connection: int = 0
    """How often that process has connected anew."""


class Dropped(enum.StrEnum):
    """Why a frame was dropped."""

    MALFORMED = "malformed"
    """It is no message of this border."""
    UNKNOWN = "unknown"
    """It came from nobody who has introduced himself."""
    STALE = "stale"
    """It is of an earlier incarnation, connection or epoch."""
    REPLAYED = "replayed"
    """An introduction that somebody else has made, who is still there."""
    UNFIT = "unfit"
    """It is a message, and fits nothing that we know."""


class Peers(ABC, Generic[Sent, Received]):
    """Peers of one kind, by number. A kind says how its peers introduce themselves, and what sending to them means."""

    def __init__(self, router: zmq.Socket[bytes], sends: object, receives: object) -> None:
        """`sends` and `receives` are the types of messages."""
        self.socket = router
        """For pollers."""
        self.dropped: Counter[Dropped] = Counter()
        self._log = LimitedLog(_log)
        self._readable = [(router, zmq.POLLIN)]
        self._outgoing: Codec[Sent] = Codec(sends)
        self._incoming: Codec[Received] = Codec(receives)
        self._identities: dict[int, bytes] = {}
        self._introductions: dict[int, Introduction] = {}
        """The last of each number, whether it is still there or not."""

    def receive(self) -> Iterator[tuple[int, Received]]:
        """(number, message) for everything that has come, introductions among it, without waiting."""
        for _ in range(_MAX_FRAMES_PER_WAKE):
            try:
                identity = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            # A ROUTER puts the sender's identity before every message, so there is another frame.
            frame = self.socket.recv(copy=False)
            arrival = Dropped.MALFORMED if frame.more else self._understand(identity, frame.bytes)
            while frame.more:
                frame = self.socket.recv(copy=False)
            if isinstance(arrival, Dropped):
                self.dropped[arrival] += 1
            else:
                yield arrival
            # One message is the rule. To ask whether another is there takes a quarter of the exception's time.
            if not zmq.zmq_poll(self._readable, 0):
                return

    def drop(self, kind: Dropped) -> None:
        """Count a message that `receive` gave, and that meant nothing."""
        self.dropped[kind] += 1

    def forget(self, number: int) -> None:
        """That process ended, or is as good as: nothing from it counts any more."""
        self._identities.pop(number, None)

    @abstractmethod
    def _introduction(self, message: Received) -> Introduction | Dropped | None:
        """What an introduction says, or why it is none of ours; none for any other message."""

    def _post(self, number: int, frame: bytes) -> None:
        """Send without waiting. Raises zmq.ZMQError for a peer that cannot be reached or leaves too much unread."""
        self.socket.send(self._identities[number], _MORE_FOLLOWS)
        self.socket.send(frame, zmq.NOBLOCK)

    def _understand(self, identity: bytes, frame: bytes) -> tuple[int, Received] | Dropped:
        try:
            message = self._incoming.decode(frame)
        except WireError as error:
            self._log.warning("a frame was dropped: %s", error)
            return Dropped.MALFORMED
        introduction = self._introduction(message)
        if isinstance(introduction, Dropped):
            return introduction
        if introduction is None:
            for number, known in self._identities.items():
                if known == identity:
                    return number, message
            return Dropped.UNKNOWN
        if (refusal := self._refusal_of(identity, introduction)) is not None:
            self._log.warning(
                "peer %d introduced itself as incarnation %d, connection %d, and is not let in: %s",
                *introduction,
                refusal.value,
            )
            return refusal
        self._introductions[introduction.number] = introduction
        self._identities[introduction.number] = identity
        return introduction.number, message

    def _refusal_of(self, identity: bytes, introduction: Introduction) -> Dropped | None:
        for number, known in self._identities.items():
            if known == identity:  # it is somebody else already, or says the same again
                return None if introduction == self._introductions[number] else Dropped.UNFIT
        last = self._introductions.get(introduction.number)
        if last is None or introduction > last or not self._is_reachable(introduction.number):
            return None
        return Dropped.REPLAYED if introduction == last else Dropped.STALE

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
        if not isinstance(message, Register):
            return None
        return Introduction(message.frontend, message.incarnation, message.connection)

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

    def _introduction(self, message: FromWorker) -> Introduction | Dropped | None:
        if not isinstance(message, WorkerHello):
            return None
        if message.protocol_version != PROTOCOL_VERSION:
            self._log.error(
                "a worker speaks protocol %d; this engine speaks %d", message.protocol_version, PROTOCOL_VERSION
            )
            return Dropped.UNFIT
        if (refusal := self._refusal(message)) is not None:
            self._log.error("a worker is refused: %s", refusal)
            return Dropped.UNFIT
        return Introduction(message.rank, message.incarnation)

    def send(self, message: ToWorker) -> int:
        """Send to every rank, without waiting; returns the message's length in bytes."""
        frame = self._outgoing.encode(message)
        for rank in self._identities:
            try:
                self._post(rank, frame)
            except zmq.ZMQError as error:
                # The supervisor notices a dead worker by itself and tells the loop.
                self._log.warning("rank %d cannot be reached: %s", rank, error)
        return len(frame)
