"""Suspects: which sequence it is that ends workers, found by running halves of those that may be it apart.

Owns the groups of suspects. It knows neither plans nor queue, and admits nobody: the scheduler asks who may run next.

A worker's end says nothing of its cause: a request that the worker cannot compute, or somebody's SIGKILL. A sequence
that ran at two ends in a row without a token between them is a suspect. Suspects are tried a group at a time, beside
nobody but those who have got a token since the last end: a group under which the worker ends is halved, one that has
got a token is none any more. A single suspect is found once workers have ended under it alone twice, and three times in
all: one SIGKILL from outside may hit anybody.

n suspects take ⌈log2 n⌉ + 3 ends in a row without a token between them, two before there are suspects and two of the
last one alone. Two ends in a row from outside, on a single suspect that has not got a token since, would be its fault.
"""

from collections import deque
from collections.abc import Iterable

from pagewire.scheduler_svc.engine.running_batch import SlotTable
from pagewire.scheduler_svc.engine.sequence import Sequence, SequenceStatus

_SUSPECT_CRASHES = 2
_LONE_CRASHES = 2
_MIN_CRASHES = 3


class Suspects:
    """Groups of suspects; the first is on trial, and the older half of one comes before the younger."""

    def __init__(self) -> None:
        self._groups: deque[list[Sequence]] = deque()

    def crashed(self, running: Iterable[Sequence]) -> Sequence | None:
        """A worker was lost under these sequences, which wait again and have counted it. Returns the one that ends
        workers, where that is known now; it is no suspect any more."""
        ran = set(running)
        stuck = sorted((s for s in ran if s.worker_crashes >= _SUSPECT_CRASHES), key=lambda s: s.arrival)
        others = ([s for s in group if s not in ran and _may_be_it(s)] for group in self._groups)
        self._groups = deque(group for group in others if group)
        if len(ran) == len(stuck) == 1:
            sequence = stuck[0]
            sequence.lone_crashes += 1
            if sequence.lone_crashes >= _LONE_CRASHES and sequence.worker_crashes >= _MIN_CRASHES:
                return sequence
        middle = len(stuck) // 2
        for half in (stuck[middle:], stuck[:middle]):
            if half:
                self._groups.appendleft(half)
        return None

    def trial(self, slots: SlotTable) -> list[Sequence]:
        """The suspects on trial, of whom none has got a token yet; empty where there is nobody to suspect."""
        while self._groups:
            group = [s for s in self._groups[0] if _may_be_it(s, slots)]
            if group:
                self._groups[0] = group
                return group
            self._groups.popleft()
        return []


def reason_of(found: Sequence) -> str:
    """What its client is told."""
    return (
        f"the worker was lost {found.worker_crashes} times while it computed this request, without a token of it, "
        f"the last {found.lone_crashes} times with no other request beside it"
    )


def _may_be_it(sequence: Sequence, slots: SlotTable | None = None) -> bool:
    """Whether it is alive and has got no token since a worker was last lost under it."""
    if sequence.status is SequenceStatus.FINISHED:
        return False
    known = len(sequence.tokens)
    if slots is not None and sequence.status is SequenceStatus.RUNNING:
        known = slots.received.item(sequence.slot)
    return known == sequence.known_at_crash
