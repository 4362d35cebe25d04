"""The wait queue: sequences that wait for a slot, by priority, with a time limit for those that have one.

Owns the order of waiting. It reads no clock: `expire` is told the time.
"""

import heapq
from collections.abc import Iterator

from pagewire.scheduler_svc.engine.sequence import Sequence, SequenceKey


class WaitQueue:
    """A priority queue with removal. Entries of removed sequences stay in the heaps until they surface."""

    def __init__(self) -> None:
        self._waiting: dict[SequenceKey, Sequence] = {}
        self._by_priority: list[tuple[tuple[int, int], int, Sequence]] = []
        self._by_deadline: list[tuple[float, int, Sequence]] = []
        self._pushes = 0  # breaks ties between entries of one sequence, which heapq would compare

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._waiting.values())

    def push(self, sequence: Sequence) -> None:
        """Let a sequence wait. Its queue deadline counts only until its first step."""
        self._waiting[sequence.key] = sequence
        self._pushes += 1
        heapq.heappush(self._by_priority, (sequence.priority_key, self._pushes, sequence))
        if sequence.queue_deadline_s is not None and not sequence.started:
            heapq.heappush(self._by_deadline, (sequence.queue_deadline_s, self._pushes, sequence))

    def peek(self) -> Sequence | None:
        """The first sequence by priority."""
        while self._by_priority:
            sequence = self._by_priority[0][2]
            if self._waiting.get(sequence.key) is sequence:
                return sequence
            heapq.heappop(self._by_priority)
        return None

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out; it must be waiting."""
        del self._waiting[sequence.key]

    def next_deadline_s(self) -> float | None:
        """When `expire` next has something to do."""
        while self._by_deadline:
            deadline_s, _, sequence = self._by_deadline[0]
            if self._waiting.get(sequence.key) is sequence and not sequence.started:
                return deadline_s
            heapq.heappop(self._by_deadline)
        return None

    def expire(self, now_s: float) -> list[Sequence]:
        """Take out, and return, the sequences whose time to wait is over."""
        expired: list[Sequence] = []
        while (deadline_s := self.next_deadline_s()) is not None and deadline_s <= now_s:
            sequence = heapq.heappop(self._by_deadline)[2]
            self.remove(sequence)
            expired.append(sequence)
        return expired
