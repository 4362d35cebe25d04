"""Newcomers: who is given a slot at once although none is free, and who has to leave it.

The first sequence of a tenant that has nothing running takes the place of one of a tenant that has the most, and two at
least. Its turn has come then, by the wait queue's order, but without this it would wait until one of the others' ends,
however long that is: whoever filled the slots first would have them. The one that leaves is the last that came of its
tenant, of the same or a lower priority; it waits again before all that have not run, and goes on to the same token.

Each sequence displaces another once at most, and there is at most one in a step: a tenant cannot make another's be
computed again and again without being served itself. Where memory is short, and not slots, nobody is displaced.

It decides, and takes nothing away. It knows neither blocks nor plans.
"""

from pagewire.scheduler_svc.engine.open_sequences import OpenSequences
from pagewire.scheduler_svc.engine.running_batch import RunningBatch
from pagewire.scheduler_svc.engine.sequence import Sequence

_LEAST_RUNNING = 2


class Newcomers:
    """Of one scheduler."""

    def __init__(self, sequences: OpenSequences) -> None:
        self._open = sequences

    def displaced(self, batch: RunningBatch) -> Sequence | None:
        """Who is to leave its slot for the first that waits; none where nobody is. Asked before somebody is admitted;
        counts as the one time of the sequence that waits."""
        newcomer = self._open.waiting.peek()
        if newcomer is None or batch.slots.num_free or newcomer.has_displaced:
            return None
        if newcomer.started or self._open.running_of(newcomer.tenant):
            return None
        leaving = self._leaving(batch, newcomer.priority)
        newcomer.has_displaced = leaving is not None
        return leaving

    def would_displace(self, batch: RunningBatch, sequence: Sequence) -> bool:
        """Whether one that came now would not have to wait, as far as can be seen now."""
        if batch.slots.num_free or self._open.running_of(sequence.tenant):
            return False
        return self._leaving(batch, sequence.priority) is not None

    def _leaving(self, batch: RunningBatch, priority: int) -> Sequence | None:
        tenant, count = self._open.most_running
        if count < _LEAST_RUNNING:
            return None
        return batch.last_of(tenant, priority)
