"""The processes at the other end of one of the engine's ROUTERs: who they are, and the way to and from them.

Owns which identity each peer's number stands for. A peer introduces itself with a message that gives its number and its
incarnation; a later incarnation takes an earlier one's place, never the other way round. What does not decode, or comes
from nobody who is introduced, is counted and dropped; nothing raises past `receive`.
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
        if incarnation < self._incarnations.get(number, 0):
            return None
        self._incarnations[number] = incarnation
        self._identities[number] = identity
        return number, message
