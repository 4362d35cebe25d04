"""The engine's end of the wire to the workers.

Owns which ranks have said hello, and under which identity. It does not know plans from results: it moves bytes one way
and decoded messages the other. What does not decode, or comes from somebody without a part in this, is counted and
dropped; nothing raises past this link.
"""

import logging
from collections.abc import Iterator

import zmq

from pagewire.scheduler_svc.engine.sockets import MAX_FRAMES_PER_WAKE
from pagewire.wire.codec import Codec, WireError
from pagewire.wire.plan import PROTOCOL_VERSION, FromWorker, ToWorker, WorkerHello

_log = logging.getLogger(__name__)


class WorkerLink:
    """Talks to every rank; ranks get the same bytes."""

    def __init__(self, router: zmq.Socket[bytes]) -> None:
        self._router = router
        self._to_worker: Codec[ToWorker] = Codec(ToWorker)
        self._from_worker: Codec[FromWorker] = Codec(FromWorker)
        self._identities: dict[int, bytes] = {}
        self._incarnations: dict[int, int] = {}
        self.dropped_frames = 0

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """For pollers."""
        return self._router

    def receive(self) -> Iterator[tuple[int, FromWorker]]:
        """(rank, message) for everything that has come, without waiting."""
        for _ in range(MAX_FRAMES_PER_WAKE):
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            arrival = self._understand(frames)
            if arrival is None:
                self.dropped_frames += 1
            else:
                yield arrival

    def send(self, message: ToWorker) -> int:
        """Send to every rank that said hello; returns the message's size in bytes."""
        frame = self._to_worker.encode(message)
        for rank, identity in self._identities.items():
            try:
                self._router.send_multipart([identity, frame], zmq.NOBLOCK)
            except zmq.ZMQError as error:
                # The supervisor notices a dead worker by itself and tells the loop.
                _log.warning("rank %d cannot be reached: %s", rank, error)
        return len(frame)

    def forget(self, rank: int) -> None:
        """A rank's process ended: nothing from that process counts any more."""
        self._identities.pop(rank, None)

    def _understand(self, frames: list[bytes]) -> tuple[int, FromWorker] | None:
        if len(frames) != 2:
            return None
        identity, frame = frames
        try:
            message = self._from_worker.decode(frame)
        except WireError as error:
            _log.warning("a worker's frame was dropped: %s", error)
            return None
        if isinstance(message, WorkerHello):
            return self._welcome(identity, message)
        for rank, known in self._identities.items():
            if known == identity:
                return rank, message
        return None

    def _welcome(self, identity: bytes, hello: WorkerHello) -> tuple[int, FromWorker] | None:
        if hello.protocol_version != PROTOCOL_VERSION:
            _log.error("a worker speaks protocol %d; this engine speaks %d", hello.protocol_version, PROTOCOL_VERSION)
            return None
        if hello.incarnation < self._incarnations.get(hello.rank, 0):
            return None
        self._incarnations[hello.rank] = hello.incarnation
        self._identities[hello.rank] = identity
        return hello.rank, hello
