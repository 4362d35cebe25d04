"""Wait queues: sequences that wait for a slot, by priority, and submissions that wait for the first worker.

The wait queue owns the levels, one for each priority that waits, knows how much waits, and gives up those whose time
limit has passed. It reads no clock: `expire` is told the time.
"""

import heapq
from collections.abc import Iterator

from pagewire.scheduler_svc.engine.admission import MAX_QUEUE_TIME_S, UnanswerableError, refuse_length
from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.scheduler_svc.engine.events import Event
from pagewire.scheduler_svc.engine.queue_level import Amount, Level, change_amount
from pagewire.scheduler_svc.engine.sequence import Sequence, SequenceKey
from pagewire.wire.requests import FinishKind, Rejected, RejectKind, SeqFinished, Submit


class WaitQueue:
    """A queue of levels with removal. What a level knows of tenants is forgotten when nobody waits on it."""

    def __init__(self) -> None:
        self._waiting: dict[SequenceKey, Sequence] = {}
        self._levels: dict[int, Level] = {}
        self._by_deadline: list[tuple[float, int, Sequence]] = []
        self._waits: dict[str | None, Amount] = {}
        """By tenant, those who have something here."""
        self._total = Amount()
        self._last: Sequence | None = None
        self._pushes = 0  # breaks ties between entries of one sequence, which heapq would compare

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._waiting.values())

    def push(self, sequence: Sequence) -> None:
        """Let a sequence wait. Its queue deadline counts only until its first step."""
        self._waiting[sequence.key] = sequence
        self._last = sequence
        level = self._levels.setdefault(sequence.priority, Level())
        level.push(sequence)
        self._count(level, sequence, 1)
        self._pushes += 1
        if sequence.queue_deadline_s is not None and not sequence.started:
            heapq.heappush(self._by_deadline, (sequence.queue_deadline_s, self._pushes, sequence))

    def peek(self) -> Sequence | None:
        """The first sequence of the highest level."""
        return self._levels[max(self._levels)].first(self._has) if self._levels else None

    def admit(self, sequence: Sequence) -> None:
        """Take a sequence out because it gets a slot, which is its tenant's turn. Its tokens count as served."""
        if not sequence.started:
            self._levels[sequence.priority].take_turn(sequence.tenant)
        self.serve(sequence)
        self.remove(sequence)

    def serve(self, sequence: Sequence) -> None:
        """Count what has been computed of a sequence since it was counted last: its tenant has been served that."""
        num_tokens = len(sequence.tokens) - sequence.num_served
        sequence.num_served += num_tokens
        if (level := self._levels.get(sequence.priority)) is not None:
            level.serve(sequence.tenant, num_tokens)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out; it must be waiting."""
        del self._waiting[sequence.key]
        level = self._levels[sequence.priority]
        self._count(level, sequence, -1)
        if not level.waits:
            del self._levels[sequence.priority]

    def _has(self, sequence: Sequence) -> bool:
        return self._waiting.get(sequence.key) is sequence

    def refusal(self, sequence: Sequence, config: SchedulerConfig) -> str | None:
        """Why there is no room for one more, if there is none. Whoever has nothing here may bring any number of tokens,
        and so may the other outputs of a request whose first was taken: a long prompt would never be let in
        otherwise."""
        waits, own = self._total, self._waits.get(sequence.tenant)
        if waits.sequences >= config.max_queued:
            return f"{waits.sequences} sequences wait already; the limit is {config.max_queued} (max_queued)"
        tokens, limit = len(sequence.tokens), config.max_queued_tokens
        is_begun = self._is_of_last(sequence)
        if own is not None and not is_begun and waits.tokens + tokens > limit:
            return (
                f"{waits.tokens} prompt tokens wait already; with the {tokens} of this one they are over the limit of "
                f"{limit} (max_queued_tokens)"
            )
        if not sequence.tenant or own is None:
            return None
        if own.sequences >= config.max_queued // 2:
            return (
                f"{own.sequences} sequences of tenant {sequence.tenant} wait already; a tenant's limit is "
                f"{config.max_queued // 2}, half of max_queued"
            )
        if not is_begun and own.tokens + tokens > limit // 2:
            return (
                f"{own.tokens} prompt tokens of tenant {sequence.tenant} wait already; with the {tokens} of this one "
                f"they are over a tenant's limit of {limit // 2}, half of max_queued_tokens"
            )
        return None

    def _is_of_last(self, sequence: Sequence) -> bool:
        """Whether the sequence that came last waits, and is of the same request."""
        last = self._last
        return (
            last is not None
            and self._has(last)
            and (last.key.frontend, last.tenant, last.request_id)
            == (sequence.key.frontend, sequence.tenant, sequence.request_id)
        )

    def ahead_of(self, sequence: Sequence) -> Amount:
        """What waits and would go before a sequence that came now."""
        ahead = Amount()
        for priority, level in self._levels.items():
            if priority > sequence.priority:
                ahead = ahead.plus(level.all())
            elif priority == sequence.priority:
                ahead = ahead.plus(level.ahead_of(sequence))
        return ahead

    def _count(self, level: Level, sequence: Sequence, sign: int) -> None:
        """A sequence that waits gets no tokens, so what is counted when it comes is what leaves with it."""
        change = Amount(sign, sign * len(sequence.tokens))
        self._total = self._total.plus(change)
        change_amount(self._waits, sequence.tenant, change)
        level.count(sequence, change)

    def next_deadline_s(self) -> float | None:
        """When `expire` next has something to do."""
        while self._by_deadline:
            deadline_s, _, sequence = self._by_deadline[0]
            if self._has(sequence) and not sequence.started:
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

    def violations(self) -> Iterator[str]:
        """What does not hold: how much is counted in all, of each tenant and on each level."""
        total = Amount()
        tenants: dict[str | None, Amount] = {}
        levels: dict[int, dict[str | None, Amount]] = {}
        for sequence in self:
            one = Amount(1, len(sequence.tokens))
            total = total.plus(one)
            change_amount(tenants, sequence.tenant, one)
            change_amount(levels.setdefault(sequence.priority, {}), None if sequence.started else sequence.tenant, one)
        counted = {priority: level.waits for priority, level in self._levels.items()}
        if total != self._total or tenants != self._waits or levels != counted:
            yield f"{total} waits, of which {self._total} is counted; of levels {levels}, counted {counted}"


def queue_timeout(key: SequenceKey, waited_s: float, retry_s: float) -> Rejected:
    """What is said of a sequence whose time to wait is over."""
    message = f"no step came free within max_queue_time, {waited_s:.3f} s after arrival"
    return Rejected(key.handle, RejectKind.QUEUE_TIMEOUT, "max_queue_time", message, retry_s)


def _gives_up_s(request: Submit, came_s: float) -> float | None:
    """None, too, where the scheduler will refuse what was asked for."""
    wait_s = request.max_queue_time_s
    return came_s + wait_s if wait_s is not None and 0 <= wait_s <= MAX_QUEUE_TIME_S else None


class EarlySubmissions:
    """Submissions that came before the first worker; after an engine's restart, all that frontends still have running.

    They wait in the order in which they came, no more than may later run and wait, and each no longer than it wishes:
    the time until there is a worker is time in the queue. Until there is one, and with it a scheduler, they take what
    frontends say in the scheduler's place.
    """

    def __init__(self, max_model_len: int, max_waiting: int) -> None:
        self._max_model_len = max_model_len
        self._max_waiting = max_waiting
        self._waiting: dict[SequenceKey, tuple[Submit, float]] = {}
        """With the time when it came."""
        self._by_deadline: list[tuple[float, int, SequenceKey]] = []
        self._num_taken = 0  # breaks ties

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
            message = f"{len(self._waiting)} sequences wait for the model to load; the limit is {self._max_waiting}"
            return Rejected(request.handle, RejectKind.QUEUE_FULL, "", message, 1.0)
        self._waiting[key] = (request, now_s)
        if (deadline_s := _gives_up_s(request, now_s)) is not None:
            self._num_taken += 1
            heapq.heappush(self._by_deadline, (deadline_s, self._num_taken, key))
        return None

    def next_deadline_s(self) -> float | None:
        """When `expire` next has something to do."""
        while self._by_deadline:
            deadline_s, _, key = self._by_deadline[0]
            if key in self._waiting and _gives_up_s(*self._waiting[key]) == deadline_s:
                return deadline_s
            heapq.heappop(self._by_deadline)
        return None

    def expire(self, now_s: float) -> list[Event[Rejected]]:
        """Give up on those that waited longer than they wished to."""
        rejections = []
        while (deadline_s := self.next_deadline_s()) is not None and deadline_s <= now_s:
            key = heapq.heappop(self._by_deadline)[2]
            _, came_s = self._waiting.pop(key)
            rejections.append(Event(key.frontend, queue_timeout(key, now_s - came_s, 1.0)))
        return rejections

    def abort(self, key: SequenceKey) -> bool:
        """Forget one; false if it does not wait."""
        return self._waiting.pop(key, None) is not None

    def pause(self, _key: SequenceKey) -> bool:
        """None of them runs. One that had tokens under an earlier engine is paused again if more come unread."""
        return False

    resume = pause

    def abort_request(self, request_id: str, tenant: str | None) -> list[Event[SeqFinished]]:
        """Forget a request's; returns their ends."""
        keys = [
            key
            for key, (request, _) in self._waiting.items()
            if request.request_id == request_id and tenant in (None, request.tenant)
        ]
        for key in keys:
            self.abort(key)
        return [Event(key.frontend, SeqFinished(key.handle, FinishKind.ABORTED)) for key in keys]

    def abort_frontend(self, frontend: int) -> int:
        """Forget all of a frontend's; returns how many."""
        keys = [key for key in self._waiting if key.frontend == frontend]
        for key in keys:
            self.abort(key)
        return len(keys)

    def flush_cache(self) -> int:
        """Nothing is cached."""
        return 0

    def take(self) -> list[tuple[int, Submit, float]]:
        """All of them, with their frontends and the times when they came, which then wait no longer."""
        taken = [(key.frontend, request, came_s) for key, (request, came_s) in self._waiting.items()]
        self._waiting = {}
        return taken
