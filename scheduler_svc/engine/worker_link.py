"""The engine's end of the wire to the workers. It does not know plans from results."""

import logging
from collections.abc import Callable

import zmq

from pagewire.scheduler_svc.engine.peers import Introduction, Peers
from pagewire.wire.plan import PROTOCOL_VERSION, FromWorker, ToWorker, WorkerHello

_log = logging.getLogger(__name__)


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
            _log.error("a worker speaks protocol %d; this engine speaks %d", message.protocol_version, PROTOCOL_VERSION)
            return None
        if (refusal := self._refusal(message)) is not None:
            _log.error("a worker is refused: %s", refusal)
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
                _log.warning("rank %d cannot be reached: %s", rank, error)
