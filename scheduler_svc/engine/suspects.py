"""Suspects: which sequence it is that ends workers, found by running halves of those that may be it apart.

Owns the groups of suspects. It knows neither plans nor queue, and admits nobody: the scheduler asks who may run next.

A worker's end says nothing of its cause: a request that the worker cannot compute, or somebody's SIGKILL. A sequence
that ran at two ends in a row without a token between them is a suspect. Suspects are tried a group at a time, beside
nobody but those who have got a token since the last end: a group under which the worker ends is halved, one that has
got a token is none any more. A single suspect is found once workers have ended under it alone twice, and three times in
all: one SIGKILL from outside may hit anybody.

Among n suspects one culprit takes at most ⌈log2 n⌉ + 3 ends in a row without a token between them, two before there
are suspects and two of the last one alone. Many at once with no innocent group between them take more, and the
supervisor gives a server up after some (`max_restarts`): at the last end before that all suspects are found at once, so
that the others live. Two ends in a row from outside, on a single suspect that has not got a token since, would be its
fault.
"""

from collections import deque
from collections.abc import Iterable

from pagewire.scheduler_svc.engine.sequence import Sequence, SequenceStatus
from pagewire.scheduler_svc.engine.slot_table import SlotTable

_SUSPECT_CRASHES = 2
_LONE_CRASHES = 2
_MIN_CRASHES = 3


class Suspects:
    """Groups of suspects; the first is on trial. Halves of one go behind all others, the older before the younger."""

    def __init__(self) -> None:
        self._num_crashes = 0
        """Ends in a row without anybody's token between them."""
        self._groups: deque[list[Sequence]] = deque()

    def progressed(self) -> None:
        """Somebody got a token."""
        self._num_crashes = 0

    def crashed(self, running: Iterable[Sequence], most_in_row: int) -> list[Sequence]:
        """A worker was lost under these sequences, which wait again and have counted it. Returns those that end
        workers, where that is known now, or of which it must be assumed, at the `most_in_row`th end in a row; they are
        no suspects any more."""
        self._num_crashes += 1
        ran = set(running)
        stuck = sorted((s for s in ran if s.worker_crashes >= _SUSPECT_CRASHES), key=lambda s: s.arrival)
        others = ([s for s in group if s not in ran and _may_be_it(s)] for group in self._groups)
        self._groups = deque(group for group in others if group)
        if len(ran) == len(stuck) == 1:
            stuck[0].lone_crashes += 1
        if stuck and self._num_crashes >= most_in_row:
            found = [*stuck, *(s for group in self._groups for s in group)]
            self._groups.clear()
            return found
        if len(stuck) == 1 and stuck[0].lone_crashes >= _LONE_CRASHES and stuck[0].worker_crashes >= _MIN_CRASHES:
            return stuck
        middle = len(stuck) // 2
        # Behind the others: a group of innocents between two ends is progress, by which a server is not given up.
        self._groups.extend(half for half in (stuck[:middle], stuck[middle:]) if half)
        return []

    def trial(self, slots: SlotTable) -> list[Sequence]:
        """The suspects on trial, of whom none has got a token yet; empty where there is nobody to suspect. A group of
        which all are paused gets its turn later: others need not wait until somebody reads."""
        for _ in range(len(self._groups)):
            group = [s for s in self._groups.popleft() if _may_be_it(s, slots)]
            if any(s.status is not SequenceStatus.PAUSED for s in group):
                self._groups.appendleft(group)
                return group
            if group:
                self._groups.append(group)
        return []


def reason_of(found: Sequence) -> str:
    """What its client is told."""
    said = f"the worker was lost {found.worker_crashes} times while it computed this request, without a token of it"
    if found.lone_crashes >= _LONE_CRASHES:
        return f"{said}, the last {found.lone_crashes} times with no other request beside it"
    return f"{said}, beside others of which any may be the cause; the server could lose no more of them to find it"


def _may_be_it(sequence: Sequence, slots: SlotTable | None = None) -> bool:
    """Whether it is alive and has got no token since a worker was last lost under it."""
    if sequence.status is SequenceStatus.FINISHED:
        return False
    known = len(sequence.tokens)
    if slots is not None and sequence.status is SequenceStatus.RUNNING:
        known = slots.received.item(sequence.slot)
    return known == sequence.known_at_crash
