"""The processes at the other end of one of the engine's ROUTERs: who they are, and the way to and from them.

Owns which identity each peer's number stands for. A peer introduces itself with a message that gives its number and its
incarnation, the same for as long as it lives. A later incarnation takes an earlier one's place. An earlier one takes
that of a later one only where the later cannot be reached any more: what a process that ended still had under way must
not come between, and a wrong number must not keep the right one out for good. What does not decode, or comes from
nobody who is introduced, is counted and dropped; nothing raises past `receive`.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

import zmq

from pagewire.wire.codec import Codec, WireError

_log = logging.getLogger(__name__)

_MAX_FRAMES_PER_WAKE = 1_024
"""Most frames read before the loop turns to its other duties."""

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
        self._outgoing: Codec[Sent] = Codec(sends)
        self._incoming: Codec[Received] = Codec(receives)
        self._identities: dict[int, bytes] = {}
        self._incarnations: dict[int, int] = {}

    def receive(self) -> Iterator[tuple[int, Received]]:
        """(number, message) for everything that has come, introductions among it, without waiting."""
        for _ in range(_MAX_FRAMES_PER_WAKE):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            arrival = self._understand(frames)
            if arrival is None:
                self.dropped_frames += 1
            else:
                yield arrival

    def forget(self, number: int) -> None:
        """That process ended, or is as good as: nothing from it counts any more."""
        self._identities.pop(number, None)

    @abstractmethod
    def _introduction(self, message: Received) -> Introduction | None:
        """What an introduction says; none for any other message."""

    def _post(self, number: int, frame: bytes) -> None:
        """Send without waiting. Raises zmq.ZMQError for a peer that cannot be reached or leaves too much unread."""
        self.socket.send_multipart([self._identities[number], frame], zmq.NOBLOCK)

    def _understand(self, frames: list[bytes]) -> tuple[int, Received] | None:
        if len(frames) != 2:
            return None
        identity, frame = frames
        try:
            message = self._incoming.decode(frame)
        except WireError as error:
            _log.warning("a frame was dropped: %s", error)
            return None
        introduction = self._introduction(message)
        if introduction is None:
            return next(((number, message) for number, known in self._identities.items() if known == identity), None)
        number, incarnation = introduction
        if not self._admits(identity, introduction):
            _log.warning("peer %d introduced itself as incarnation %d, and is not let in", number, incarnation)
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
