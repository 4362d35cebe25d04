"""Early submissions: those that came before the first worker; after an engine's restart, all that frontends still have
running.

They wait in the order in which they came, no more than may later run and wait; the loop refuses what is too much. Until
there is a worker, and with it a scheduler, they take what frontends say in the scheduler's place.
"""

from pagewire.scheduler_svc.engine.admission import UnanswerableError, refuse_length
from pagewire.scheduler_svc.engine.events import Event
from pagewire.scheduler_svc.engine.sequence import SequenceKey
from pagewire.wire.requests import Rejected, RejectKind, SeqFinished, Submit


class EarlySubmissions:
    """Whose, and what."""

    def __init__(self, max_model_len: int, max_waiting: int) -> None:
        self._max_model_len = max_model_len
        self._max_waiting = max_waiting
        self._waiting: dict[SequenceKey, Submit] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, frontend: int, request: Submit, now_s: float) -> Rejected | None:
        """Take a submission to wait, or return its rejection. Raises UnanswerableError for the handle of one that waits
        already."""
        key = SequenceKey(frontend, request.handle)
        if key in self._waiting:
            raise UnanswerableError(f"frontend {frontend} submitted handle {request.handle} twice")
        if (rejection := refuse_length(request, self._max_model_len)) is not None:
            return rejection
        if len(self._waiting) >= self._max_waiting:
            message = f"{len(self._waiting)} sequences wait for the model to load already"
            return Rejected(request.handle, RejectKind.QUEUE_FULL, "", message, 1.0)
        self._waiting[key] = request
        return None

    def abort(self, key: SequenceKey) -> bool:
        """Forget one; false if it does not wait."""
        return self._waiting.pop(key, None) is not None

    def abort_request(self, request_id: str) -> list[Event[SeqFinished]]:
        """Nothing runs whose end would have to be told."""
        return []

    def abort_frontend(self, frontend: int) -> int:
        """Forget all of a frontend's; returns how many."""
        keys = [key for key in self._waiting if key.frontend == frontend]
        for key in keys:
            self.abort(key)
        return len(keys)

    def flush_cache(self) -> int:
        """Nothing is cached."""
        return 0

    def take(self) -> list[tuple[int, Submit]]:
        """All of them, with their frontends, which then wait no longer."""
        taken = [(key.frontend, request) for key, request in self._waiting.items()]
        self._waiting = {}
        return taken
