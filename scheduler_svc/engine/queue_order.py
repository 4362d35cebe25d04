"""Queue order: parts of the wait queue, whose work does not grow with how many priorities and tenants wait.

They know neither sequences nor tenants.
"""

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

from pagewire.scheduler_svc.engine.queue_bounds import Amount

Member = TypeVar("Member", bound=Hashable)

_MOST_STALE = 8
_LOWEST_PRIORITY = -(2**31)
_LAST_INDEX = 2**32


class Ranked(Generic[Member]):
    """Members by rank, the lowest first, and by when they were put in where ranks are equal. O(log n) each.

    What was removed stays in the heap until it surfaces or outnumbers the members: nobody's memory is held by those who
    have gone.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Member]] = []
        self._entry_of: dict[Member, tuple[float, int, Member]] = {}
        self._num_puts = 0  # breaks ties, so that members are never compared

    def __len__(self) -> int:
        return len(self._entry_of)

    def __contains__(self, member: Member) -> bool:
        return member in self._entry_of

    def put(self, member: Member, rank: float) -> None:
        """Put a member in, or move it."""
        self.discard(member)
        self._num_puts += 1
        entry = (rank, self._num_puts, member)
        self._entry_of[member] = entry
        heapq.heappush(self._heap, entry)

    def discard(self, member: Member) -> None:
        """Take a member out, if it is there."""
        if self._entry_of.pop(member, None) is None:
            return
        if len(self._heap) > 2 * len(self._entry_of) + _MOST_STALE:
            self._heap = list(self._entry_of.values())
            heapq.heapify(self._heap)

    def rank_of(self, member: Member) -> float | None:
        """None where it is not there."""
        entry = self._entry_of.get(member)
        return None if entry is None else entry[0]

    def first(self) -> tuple[float, Member] | None:
        """The lowest rank and whose it is; none where nobody is there."""
        while self._heap:
            rank, _, member = entry = self._heap[0]
            if self._entry_of.get(member) is entry:
                return rank, member
            heapq.heappop(self._heap)
        return None


class AmountsByPriority:
    """How much waits above a priority: a Fenwick tree of 2^32 places, of which those in use take memory. A change is 32
    additions at most; at priority 0, the usual one, two."""

    def __init__(self) -> None:
        self._nodes: dict[int, Amount] = {}

    def add(self, priority: int, change: Amount) -> None:
        """So much comes to a priority, or leaves it where it is negative."""
        index = priority - _LOWEST_PRIORITY
        while index <= _LAST_INDEX:
            node = self._nodes.get(index, Amount()).plus(change)
            if node.sequences:
                self._nodes[index] = node
            else:
                del self._nodes[index]
            index += index & -index

    def above(self, priority: int) -> Amount:
        """Of all higher ones together."""
        amount, index = self._nodes.get(_LAST_INDEX, Amount()), priority - _LOWEST_PRIORITY
        while index:
            if (node := self._nodes.get(index)) is not None:
                amount = amount.minus(node)
            index &= index - 1
        return amount
