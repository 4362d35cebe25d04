"""Wait queues: sequences that wait for a slot, by priority, and submissions that wait for the first worker.

The wait queue owns the levels, one for each priority that waits, knows how much waits, and gives up those whose time
limit has passed. It reads no clock: `expire` is told the time.
"""

from collections.abc import Iterator

from pagewire.scheduler_svc.engine.admission import MAX_QUEUE_TIME_S, UnanswerableError, refuse_length
from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.scheduler_svc.engine.events import Event
from pagewire.scheduler_svc.engine.forecast import UNMEASURED_RETRY_S
from pagewire.scheduler_svc.engine.queue_bounds import Amount, QueueBounds, change_amount
from pagewire.scheduler_svc.engine.queue_level import Level
from pagewire.scheduler_svc.engine.queue_order import AmountsByPriority, Ranked
from pagewire.scheduler_svc.engine.sequence import Sequence, SequenceKey
from pagewire.wire.columns import ID_BYTES
from pagewire.wire.requests import FinishKind, Rejected, RejectKind, SeqFinished, Submit


class WaitQueue:
    """A queue of levels with removal. What a level knows of tenants is forgotten when nobody waits on it."""

    def __init__(self) -> None:
        self._waiting: dict[SequenceKey, Sequence] = {}
        self._levels: dict[int, Level] = {}
        self._highest: Ranked[int] = Ranked()
        """The priorities in `_levels`, the highest first."""
        self._by_priority = AmountsByPriority()
        self._by_deadline: Ranked[SequenceKey] = Ranked()
        self._bounds = QueueBounds()
        self._last: Sequence | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of all that wait."""
        return self._bounds.total.tokens

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._waiting.values())

    def has_of(self, tenant: str) -> bool:
        """Whether anything of a tenant's waits."""
        return tenant in self._bounds.by_tenant

    def push(self, sequence: Sequence) -> None:
        """Let a sequence wait. Its queue deadline counts only until its first step."""
        self._waiting[sequence.key] = sequence
        self._last = sequence
        if sequence.priority not in self._levels:
            self._levels[sequence.priority] = Level()
            self._highest.put(sequence.priority, -sequence.priority)
        self._levels[sequence.priority].push(sequence)
        self._count(sequence, 1)
        if sequence.queue_deadline_s is not None and not sequence.started:
            self._by_deadline.put(sequence.key, sequence.queue_deadline_s)

    def peek(self) -> Sequence | None:
        """The first sequence of the highest level."""
        highest = self._highest.first()
        return None if highest is None else self._levels[highest[1]].first()

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
        self._by_deadline.discard(sequence.key)
        if self._last is sequence:
            self._last = None
        level = self._levels[sequence.priority]
        level.remove(sequence)
        self._count(sequence, -1)
        if not level.waits:
            del self._levels[sequence.priority]
            self._highest.discard(sequence.priority)

    def refusal(self, sequence: Sequence, config: SchedulerConfig) -> str | None:
        """Why there is no room for one more, if there is none."""
        last = self._last
        is_begun = last is not None and (last.key.frontend, last.tenant, last.request_id) == (
            sequence.key.frontend,
            sequence.tenant,
            sequence.request_id,
        )
        num_tokens, limits = len(sequence.tokens), (config.max_queued, config.max_queued_tokens)
        return self._bounds.refusal(sequence.tenant, num_tokens, *limits, is_begun=is_begun)

    def ahead_of(self, sequence: Sequence) -> Amount:
        """What waits and would go before a sequence that came now."""
        ahead = self._by_priority.above(sequence.priority)
        level = self._levels.get(sequence.priority)
        return ahead if level is None else ahead.plus(level.ahead_of(sequence))

    def _count(self, sequence: Sequence, sign: int) -> None:
        """A sequence that waits gets no tokens, so what is counted when it comes is what leaves with it."""
        change = Amount(sign, sign * len(sequence.tokens))
        self._bounds.count(sequence.tenant, change)
        self._by_priority.add(sequence.priority, change)

    def next_deadline_s(self) -> float | None:
        """When `expire` next has something to do."""
        first = self._by_deadline.first()
        return None if first is None else first[0]

    def expire(self, now_s: float) -> list[Sequence]:
        """Take out, and return, the sequences whose time to wait is over."""
        expired: list[Sequence] = []
        while (first := self._by_deadline.first()) is not None and first[0] <= now_s:
            sequence = self._waiting[first[1]]
            self.remove(sequence)
            expired.append(sequence)
        return expired

    def violations(self) -> Iterator[str]:
        """What does not hold: how much is counted in all, of each tenant and on each level."""
        total = Amount()
        tenants: dict[str | None, Amount] = {}
        levels: dict[int, dict[str | None, Amount]] = {}
        by_priority: dict[int, Amount] = {}
        for sequence in self:
            one = Amount(1, len(sequence.tokens))
            total = total.plus(one)
            change_amount(tenants, sequence.tenant, one)
            change_amount(levels.setdefault(sequence.priority, {}), None if sequence.started else sequence.tenant, one)
            by_priority[sequence.priority] = by_priority.get(sequence.priority, Amount()).plus(one)
        counted = {priority: level.waits for priority, level in self._levels.items()}
        if total != self._bounds.total or tenants != self._bounds.by_tenant or levels != counted:
            yield f"{total} waits, of which {self._bounds.total} is counted; of levels {levels}, counted {counted}"
        above = Amount()
        for priority in sorted(by_priority, reverse=True):
            if (said := self._by_priority.above(priority)) != above:
                yield f"{above} waits above priority {priority}, of which {said} is counted"
            above = above.plus(by_priority[priority])


def queue_timeout(key: SequenceKey, waited_s: float, retry_s: float) -> Rejected:
    """What is said of a sequence whose time to wait is over."""
    message = f"no step came free within max_queue_time, {waited_s:.3f} s after arrival"
    return Rejected(key.handle, RejectKind.QUEUE_TIMEOUT, "max_queue_time", message, retry_s)


def _gives_up_s(request: Submit, came_s: float) -> float | None:
    """None, too, where the scheduler will refuse what was asked for."""
    wait_s = request.max_queue_time_s
    return came_s + wait_s if wait_s is not None and 0 <= wait_s <= MAX_QUEUE_TIME_S else None


def _amount_of(request: Submit) -> Amount:
    return Amount(1, (len(request.prompt) + len(request.generated)) // ID_BYTES)


class EarlySubmissions:
    """Submissions that came before the first worker; after an engine's restart, all that frontends still have running.

    They wait in the order in which they came, no more than may later run and wait, within a queue's bounds on tokens
    and on each tenant, and each no longer than it wishes: the time until there is a worker is time in the queue. Until
    there is one, and with it a scheduler, they take what frontends say in the scheduler's place.
    """

    def __init__(self, max_model_len: int, max_waiting: int, max_tokens: int) -> None:
        """`max_tokens` of prompts; what an earlier engine had begun was accepted then, and counts without a limit."""
        self._max_model_len = max_model_len
        self._max_waiting = max_waiting
        self._max_tokens = max_tokens
        self._waiting: dict[SequenceKey, tuple[Submit, float]] = {}
        """With the time when it came."""
        self._by_deadline: Ranked[SequenceKey] = Ranked()
        self._bounds = QueueBounds()
        self._last: SequenceKey | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of all that wait."""
        return self._bounds.total.tokens

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
        if (message := self._refusal(frontend, request)) is not None:
            message = f"{message}, while the model loads"
            return Rejected(request.handle, RejectKind.QUEUE_FULL, "", message, UNMEASURED_RETRY_S)
        self._waiting[key] = (request, now_s)
        self._last = key
        self._bounds.count(request.tenant, _amount_of(request))
        if (deadline_s := _gives_up_s(request, now_s)) is not None:
            self._by_deadline.put(key, deadline_s)
        return None

    def _refusal(self, frontend: int, request: Submit) -> str | None:
        if request.generated:
            if len(self._waiting) < self._max_waiting:
                return None
            return f"{len(self._waiting)} sequences wait already; the limit is {self._max_waiting}"
        last = None if self._last is None else self._waiting[self._last][0]
        is_begun = (
            last is not None
            and self._last is not None
            and (self._last.frontend, last.tenant, last.request_id) == (frontend, request.tenant, request.request_id)
        )
        limits = (self._max_waiting, self._max_tokens)
        return self._bounds.refusal(request.tenant, _amount_of(request).tokens, *limits, is_begun=is_begun)

    def next_deadline_s(self) -> float | None:
        """When `expire` next has something to do."""
        first = self._by_deadline.first()
        return None if first is None else first[0]

    def expire(self, now_s: float) -> list[Event[Rejected]]:
        """Give up on those that waited longer than they wished to."""
        rejections = []
        while (first := self._by_deadline.first()) is not None and first[0] <= now_s:
            key = first[1]
            waited_s = now_s - self._waiting[key][1]
            self.abort(key)
            rejections.append(Event(key.frontend, queue_timeout(key, waited_s, UNMEASURED_RETRY_S)))
        return rejections

    def abort(self, key: SequenceKey) -> bool:
        """Forget one; false if it does not wait."""
        if (waited := self._waiting.pop(key, None)) is None:
            return False
        self._by_deadline.discard(key)
        self._bounds.count(waited[0].tenant, Amount().minus(_amount_of(waited[0])))
        if self._last == key:
            self._last = None
        return True

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
        for key in list(self._waiting):
            self.abort(key)
        return taken
