"""Open sequences: every one that is alive in the engine, and where it is.

    arrives ──▶ WAITING ──▶ RUNNING ──▶ ends, from anywhere
                 ▲  │  ◀──────┘  │
                 │  ▼            │
                PAUSED ◀─────────┘

Owns the table of them, their status and order of arrival, and the queue of those that wait. A paused sequence has
neither slot nor blocks and does not count in the queue: its reader has to catch up first. Then it waits again as a
preempted one does. It does not know slots: whoever moves a running sequence has taken its slot and blocks before.

Invariant (`violations`): each sequence is in exactly one of the three places, as its status says, and one that does not
run holds no memory.
"""

from collections import Counter
from collections.abc import Iterator

from pagewire.scheduler_svc.engine.sequence import NO_SLOT, Sequence, SequenceKey, SequenceStatus
from pagewire.scheduler_svc.engine.wait_queue import WaitQueue

_MOST_VIOLATIONS_TOLD = 8


class IntegrityError(Exception):
    """What the engine holds contradicts itself: nothing that it decided from now on could be trusted."""

    def __init__(self, violations: list[str]) -> None:
        told = "; ".join(violations[:_MOST_VIOLATIONS_TOLD])
        super().__init__(f"{len(violations)} invariants are violated: {told}")


class OpenSequences:
    """The only writer of a sequence's status."""

    def __init__(self) -> None:
        self.waiting = WaitQueue()
        self._all: dict[SequenceKey, Sequence] = {}
        self._paused: dict[SequenceKey, Sequence] = {}
        self._running: Counter[str] = Counter()
        """How many of each tenant's have a slot."""
        self.num_arrivals = 0
        """Sequences that have come, in all."""

    def __contains__(self, key: SequenceKey) -> bool:
        return key in self._all

    def __iter__(self) -> Iterator[Sequence]:
        """Over all, which may end meanwhile."""
        return iter(list(self._all.values()))

    def get(self, key: SequenceKey) -> Sequence | None:
        """The sequence of that name; none where it is not (or no longer) known."""
        return self._all.get(key)

    @property
    def num_running(self) -> int:
        """Sequences that have a slot."""
        return len(self._all) - len(self.waiting) - len(self._paused)

    def running_of(self, tenant: str) -> int:
        """How many of a tenant's have a slot."""
        return self._running.get(tenant, 0)

    @property
    def most_running(self) -> tuple[str, int]:
        """The tenant that has the most slots, and how many; none, and 0, where nobody has one."""
        return max(self._running.items(), key=lambda each: each[1], default=("", 0))

    @property
    def num_paused(self) -> int:
        """Sequences whose readers have to catch up."""
        return len(self._paused)

    def add(self, sequence: Sequence) -> None:
        """A sequence has come, and waits."""
        sequence.arrival = self.num_arrivals
        self.num_arrivals += 1
        self._all[sequence.key] = sequence
        self.waiting.push(sequence)

    def run(self, sequence: Sequence) -> None:
        """A sequence that waits has got a slot."""
        self.waiting.admit(sequence)
        sequence.status = SequenceStatus.RUNNING
        self._running[sequence.tenant] += 1

    def wait_again(self, sequence: Sequence) -> None:
        """A sequence that ran or was paused waits once more, whatever else waits: it was accepted before."""
        if sequence.status is SequenceStatus.RUNNING:
            self._stop(sequence)
        self._paused.pop(sequence.key, None)
        sequence.status = SequenceStatus.WAITING
        self.waiting.push(sequence)

    def pause(self, sequence: Sequence) -> None:
        """A sequence that ran or waits does neither any more. What was computed of it counts as served."""
        self._leave(sequence)
        sequence.status = SequenceStatus.PAUSED
        self._paused[sequence.key] = sequence

    def end(self, sequence: Sequence) -> None:
        """A sequence has ended, wherever it was."""
        self._leave(sequence)
        self._forget(sequence)

    def expire(self, now_s: float) -> list[Sequence]:
        """End, and return, the sequences that waited longer than they wished to."""
        expired = self.waiting.expire(now_s)
        for sequence in expired:
            self._forget(sequence)
        return expired

    def violations(self, running: list[Sequence]) -> Iterator[str]:
        """What does not hold, where these have a slot."""
        yield from self.waiting.violations()
        places = {
            SequenceStatus.RUNNING: running,
            SequenceStatus.WAITING: list(self.waiting),
            SequenceStatus.PAUSED: list(self._paused.values()),
        }
        if sum(map(len, places.values())) != len(self._all):
            counts = ", ".join(f"{len(found)} are {status.value}" for status, found in places.items())
            yield f"{len(self._all)} sequences are open, of which {counts}"
        if (tenants := Counter(sequence.tenant for sequence in running)) != self._running:
            yield f"{dict(tenants)} have slots, of which {dict(self._running)} are counted"
        for status, found in places.items():
            for sequence in found:
                if self._all.get(sequence.key) is not sequence or sequence.status is not status:
                    yield f"{sequence.key} is among those {status.value} and says that it is {sequence.status.value}"
                if status is not SequenceStatus.RUNNING and (sequence.blocks or sequence.slot != NO_SLOT):
                    yield f"{sequence.key} is {status.value} and holds {len(sequence.blocks)} blocks"

    def _leave(self, sequence: Sequence) -> None:
        match sequence.status:
            case SequenceStatus.RUNNING:
                self._stop(sequence)
                self.waiting.serve(sequence)
            case SequenceStatus.WAITING:
                self.waiting.remove(sequence)
            case _:
                self._paused.pop(sequence.key, None)

    def _stop(self, sequence: Sequence) -> None:
        self._running[sequence.tenant] -= 1
        if not self._running[sequence.tenant]:
            del self._running[sequence.tenant]

    def _forget(self, sequence: Sequence) -> None:
        sequence.status = SequenceStatus.FINISHED
        del self._all[sequence.key]
