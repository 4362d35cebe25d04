"""The engine's end of the wire to the frontends.

Owns which frontends are registered, and under which identity. It does not know sequences. A frontend that cannot be
reached, or leaves more unread than the high-water mark, is reported as gone: it must never hold the engine.
"""

import logging
from collections.abc import Iterator

import zmq

from pagewire.scheduler_svc.engine.sockets import MAX_FRAMES_PER_WAKE
from pagewire.wire.codec import Codec, WireError
from pagewire.wire.requests import FromFrontend, Register, ToFrontend

_log = logging.getLogger(__name__)


class FrontendLink:
    """Talks to each registered frontend."""

    def __init__(self, router: zmq.Socket[bytes]) -> None:
        self._router = router
        self._to_frontend: Codec[ToFrontend] = Codec(ToFrontend)
        self._from_frontend: Codec[FromFrontend] = Codec(FromFrontend)
        self._identities: dict[int, bytes] = {}
        self._frontends: dict[bytes, int] = {}
        self._incarnations: dict[int, int] = {}
        self._gone: set[int] = set()
        self.dropped_frames = 0

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """For pollers."""
        return self._router

    @property
    def frontends(self) -> list[int]:
        """Who is registered."""
        return list(self._identities)

    def receive(self) -> Iterator[tuple[int, FromFrontend]]:
        """(frontend, message) for everything that has come, without waiting."""
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

    def send(self, frontend: int, message: ToFrontend) -> None:
        """Send to one frontend, without waiting; one that is not registered gets nothing."""
        identity = self._identities.get(frontend)
        if identity is None:
            return
        try:
            self._router.send_multipart([identity, self._to_frontend.encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            _log.warning("frontend %d cannot be reached, so its streams end: %s", frontend, error)
            del self._frontends[self._identities.pop(frontend)]
            self._gone.add(frontend)

    def broadcast(self, message: ToFrontend) -> None:
        """Send to every registered frontend."""
        for frontend in self.frontends:
            self.send(frontend, message)

    def take_gone(self) -> set[int]:
        """Frontends found unreachable since the last call."""
        gone, self._gone = self._gone, set()
        return gone

    def _understand(self, frames: list[bytes]) -> tuple[int, FromFrontend] | None:
        if len(frames) != 2:
            return None
        identity, frame = frames
        try:
            message = self._from_frontend.decode(frame)
        except WireError as error:
            _log.warning("a frontend's frame was dropped: %s", error)
            return None
        if isinstance(message, Register):
            return self._register(identity, message)
        frontend = self._frontends.get(identity)
        return None if frontend is None else (frontend, message)

    def _register(self, identity: bytes, message: Register) -> tuple[int, FromFrontend] | None:
        frontend = message.frontend
        if message.incarnation < self._incarnations.get(frontend, 0):
            return None
        self._incarnations[frontend] = message.incarnation
        old = self._identities.pop(frontend, None)
        if old is not None:
            del self._frontends[old]
        self._identities[frontend] = identity
        self._frontends[identity] = frontend
        return frontend, message
