"""The engine's end of the wire to the frontends.

It does not know sequences. A frontend that cannot be reached, or leaves more unread than the high-water mark, is
reported as gone: it must never hold the engine.
"""

import logging

import zmq

from pagewire.scheduler_svc.engine.peers import Introduction, Peers
from pagewire.wire.requests import FromFrontend, Register, ToFrontend

_log = logging.getLogger(__name__)


class FrontendLink(Peers[ToFrontend, FromFrontend]):
    """Talks to each registered frontend."""

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
            _log.warning("frontend %d cannot be reached, so its streams end: %s", frontend, error)
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
