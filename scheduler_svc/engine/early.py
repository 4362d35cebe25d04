"""Submissions that came before the first worker: after an engine's restart, all that frontends still have running.

They wait in the order in which they came, no more than may later run and wait; the loop refuses what is too much.
"""

from collections.abc import Iterable

from pagewire.scheduler_svc.engine.sequence import SequenceKey
from pagewire.wire.requests import Submit


class EarlySubmissions:
    """Whose, and what."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._waiting: dict[SequenceKey, Submit] = {}

    def __contains__(self, key: SequenceKey) -> bool:
        return key in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: SequenceKey, request: Submit) -> bool:
        """Whether there was room. The key must be new."""
        if len(self._waiting) >= self._max_waiting:
            return False
        self._waiting[key] = request
        return True

    def abort(self, keys: Iterable[SequenceKey]) -> None:
        """Forget these, those of them that wait."""
        for key in keys:
            self._waiting.pop(key, None)

    def drop_frontend(self, frontend: int) -> None:
        """Forget all of a frontend's."""
        self.abort([key for key in self._waiting if key.frontend == frontend])

    def take(self) -> list[tuple[int, Submit]]:
        """All of them, with their frontends, which then wait no longer."""
        taken = [(key.frontend, request) for key, request in self._waiting.items()]
        self._waiting = {}
        return taken
