"""Submissions that came before the first worker: after an engine's restart, all that frontends still have running.

They wait in the order in which they came, no more than may later run and wait; the loop refuses what is too much.
"""

from collections.abc import Container

from pagewire.scheduler_svc.engine.sequence import SequenceKey
from pagewire.wire.requests import Submit


class EarlySubmissions:
    """Whose, and what."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._waiting: list[tuple[int, Submit]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, frontend: int, request: Submit) -> bool:
        """Whether there was room."""
        if len(self._waiting) >= self._max_waiting:
            return False
        self._waiting.append((frontend, request))
        return True

    def abort(self, keys: Container[SequenceKey]) -> None:
        """Forget these."""
        self._waiting = [
            (owner, request) for owner, request in self._waiting if SequenceKey(owner, request.handle) not in keys
        ]

    def drop_frontend(self, frontend: int) -> None:
        """Forget all of a frontend's."""
        self._waiting = [(owner, request) for owner, request in self._waiting if owner != frontend]

    def take(self) -> list[tuple[int, Submit]]:
        """All of them, which then wait no longer."""
        taken, self._waiting = self._waiting, []
        return taken
