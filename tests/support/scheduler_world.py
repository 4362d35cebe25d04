"""Scheduler, block manager and a content worker in one process, driven event by event against what must come out.

Owns the expected outcome of every sequence, computed without any scheduler. Each sequence's seed is its handle, so
that a slot of the worker can be told whose it is.
"""

from collections import deque
from dataclasses import dataclass, field

import msgspec
from support.content_worker import ContentWorker, expected_output
from support.kv_follower import Follower
from support.scheduler_integrity import check_integrity
from support.worker_plans import block_table

from pagewire.scheduler_svc.engine.block_ledger import BlockLedger
from pagewire.scheduler_svc.engine.cache_log import CacheLog
from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.scheduler_svc.engine.events import Event
from pagewire.scheduler_svc.engine.results import StepRows
from pagewire.scheduler_svc.engine.scheduler import Scheduler
from pagewire.scheduler_svc.engine.sequence import SequenceKey
from pagewire.scheduler_svc.engine.steps import PlannedStep
from pagewire.wire.codec import Codec
from pagewire.wire.columns import Int32Array, pack
from pagewire.wire.kv_events import KvEvent, KvEventBatch, short_hash
from pagewire.wire.requests import FinishKind, Rejected, SeqFinished, Submit
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.slots.columns import SlotLimits

FRONTEND = 3


@dataclass(slots=True)
class Expectation:
    """One sequence: what it asked, what it must get, what it got."""

    prompt: list[int]
    output: list[int]
    kind: FinishKind
    request_id: str
    got: list[int] = field(default_factory=list)
    ended: FinishKind | None = None
    cancelled: bool = False
    paused: bool = False
    starts: int = 0


class World:
    """Drives the scheduler as the engine's loop does, with up to `depth` plans in flight."""

    def __init__(self, config: SchedulerConfig, depth: int, log: CacheLog | None = None) -> None:
        self.config = config
        self.ledger = BlockLedger()
        self.scheduler = Scheduler(config, log, self.ledger)
        self._log = log
        self._batches = Codec[KvEventBatch](KvEventBatch)
        self._num_batches = 0
        self.follower = Follower()
        """What is told of the cache, where there is a log."""
        self.worker = _worker(config)
        self.now_s = 0.0
        self.sequences: dict[int, Expectation] = {}
        self.rejections: list[Rejected] = []
        self._depth = depth
        self._in_flight: deque[tuple[PlannedStep, Int32Array]] = deque()
        self._epoch = 0
        self._step_id = 0
        self.worker.begin(0)

    # Events

    def submit(
        self,
        prompt: list[int],
        max_tokens: int,
        *,
        stop_token_ids: tuple[int, ...] = (),
        ignore_eos: bool = False,
        priority: int = 0,
        salt: bytes = b"",
        max_queue_time_s: float | None = None,
        request_id: str = "request",
        tenant: str = "",
        generated: int = 0,
    ) -> int:
        """Submit a sequence, with the first `generated` tokens of its output already delivered; returns its handle."""
        handle = len(self.sequences)
        ends = frozenset(stop_token_ids) | (frozenset() if ignore_eos else frozenset(self.config.eos_token_ids))
        output = expected_output(prompt, handle, max_tokens, ends, self.config.vocab_size)
        kind = FinishKind.LENGTH
        if not ignore_eos and output[-1] in self.config.eos_token_ids:
            kind = FinishKind.EOS
        elif output[-1] in stop_token_ids:
            kind = FinishKind.STOP_TOKEN
        expectation = Expectation(prompt, output, kind, request_id, got=output[:generated])
        self.sequences[handle] = expectation
        message = Submit(
            handle=handle,
            request_id=request_id,
            prompt=pack(prompt),
            generated=pack(output[:generated]),
            sampling=SamplingParams(0.0, 0, 1.0, handle),
            max_tokens=max_tokens,
            stop_token_ids=list(stop_token_ids),
            ignore_eos=ignore_eos,
            priority=priority,
            salt=salt,
            max_queue_time_s=max_queue_time_s,
            cache_salt=salt.decode() or None,
            tenant=tenant,
        )
        answer = self.scheduler.submit(FRONTEND, message, self.now_s)
        if isinstance(answer, Rejected):
            self._reject(Event(FRONTEND, answer))
        elif isinstance(answer, SeqFinished):
            self._finish(Event(FRONTEND, answer))
        return handle

    def cancel(self, handle: int) -> None:
        """A client goes away."""
        expectation = self.sequences[handle]
        known = self.scheduler.abort(SequenceKey(FRONTEND, handle))
        assert known == (expectation.ended is None and not expectation.cancelled)
        if known:
            expectation.cancelled = True
            expectation.paused = False

    def pause(self, handle: int) -> None:
        """A client falls behind."""
        expectation = self.sequences[handle]
        alive = expectation.ended is None and not expectation.cancelled
        assert self.scheduler.pause(SequenceKey(FRONTEND, handle)) == (alive and not expectation.paused)
        expectation.paused = alive

    def resume(self, handle: int) -> None:
        """A client has caught up."""
        expectation = self.sequences[handle]
        assert self.scheduler.resume(SequenceKey(FRONTEND, handle)) == expectation.paused
        expectation.paused = False

    def resume_all(self) -> None:
        """All clients have."""
        for handle, expectation in self.sequences.items():
            if expectation.paused:
                self.resume(handle)

    def abort_request(self, request_id: str, tenant: str | None = None) -> None:
        """An operator ends a request."""
        for finish in self.scheduler.abort_request(request_id, tenant):
            self.sequences[finish.message.handle].kind = FinishKind.ABORTED
            self._finish(finish)

    def plan(self) -> bool:
        """Send one plan, if there is room and work; the worker runs it at once, its result waits."""
        if len(self._in_flight) >= self._depth:
            return False
        step = self.scheduler.plan(self._epoch, self._step_id, self.now_s)
        if step is None:
            return False
        self._step_id += 1
        for start in step.starts:
            self.sequences[start.message.handle].starts += 1
        tokens = self.worker.execute(step.plan)
        self._in_flight.append((step, tokens))
        self._compare_tables()
        return True

    def deliver(self) -> bool:
        """Bring the oldest result back."""
        if not self._in_flight:
            return False
        step, tokens = self._in_flight.popleft()
        outcome = self.scheduler.apply(step, StepRows(tokens))
        for handle, token in zip(outcome.handles.tolist(), outcome.tokens.tolist(), strict=True):
            expectation = self.sequences[handle]
            assert expectation.ended is None, f"sequence {handle} got a token after its end"
            assert not expectation.cancelled, f"sequence {handle} got a token after it was cancelled"
            assert not expectation.paused, f"sequence {handle} got a token while it was paused"
            expectation.got.append(token)
        for finish in outcome.finishes:
            self._finish(finish)
        return True

    def expire(self, passed_s: float) -> None:
        """Let time pass."""
        self.now_s += passed_s
        for rejection in self.scheduler.expire(self.now_s):
            self._reject(rejection)

    def lose_worker(self) -> list[Event[SeqFinished]]:
        """The worker dies, results in flight with it, and a new one comes; returns the sequences that end by it."""
        self._in_flight.clear()
        failed = self.scheduler.restart()
        for finish in failed:
            self.sequences[finish.message.handle].kind = finish.message.kind
            self._finish(finish)
        self._epoch += 1
        self._step_id = 0
        self.worker.begin(self._epoch)
        return failed

    def replace_worker(self, num_blocks: int) -> None:
        """The worker dies, and the one that comes has so many blocks."""
        self.lose_worker()
        self.config = msgspec.structs.replace(self.config, num_blocks=num_blocks)
        self.worker = _worker(self.config)
        self.worker.begin(self._epoch)
        for finish in self.scheduler.resize(self.config):
            self._finish(finish)

    def drain(self) -> int:
        """Run until every sequence has ended that is not paused; returns the number of plans it took."""
        plans = 0
        while self.scheduler.has_work:
            planned = self.plan()
            plans += planned
            delivered = self.deliver()
            assert planned or delivered, "sequences are alive and nothing moves"
        while self.deliver():
            pass
        return plans

    # Judgement

    def check(self) -> None:
        """What must hold at every moment."""
        check_integrity(self.scheduler)
        alive = [e for e in self.sequences.values() if e.ended is None and not e.cancelled]
        paused = [e for e in alive if e.paused]
        assert len(paused) == self.scheduler.num_paused
        at_work = self.scheduler.num_running + self.scheduler.num_waiting
        assert len(alive) - len(paused) == at_work, "a sequence was lost"
        for expectation in self.sequences.values():
            assert expectation.got == expectation.output[: len(expectation.got)], "an output went wrong"
        if self._log is not None and (events := self._log.take()):
            self._follow(events)

    def _follow(self, events: list[KvEvent]) -> None:
        """Whoever follows the events knows the prefix cache, and the tokens of every block that hangs together."""
        self.follower.take(self._num_batches, self._batches.encode(KvEventBatch(2e9, events, 0)))
        self._num_batches += 1
        blocks = self.scheduler.blocks
        assert set(self.follower.blocks) == {short_hash(known) for known in blocks._cache._block_of}
        told = self.follower.prefixes()
        for sequence in self.scheduler._open:
            keys = () if sequence.cache_salt is None else (sequence.cache_salt,)
            for index, block_hash in enumerate(sequence.hashes):
                if (prefix := told.get(short_hash(block_hash))) is not None:
                    assert prefix == (keys, tuple(sequence.tokens[: (index + 1) * blocks.block_size]))

    def check_end(self) -> None:
        """What must hold when nothing runs any more."""
        self.check()
        rejected = {rejection.handle for rejection in self.rejections}
        for handle, expectation in self.sequences.items():
            if expectation.cancelled or handle in rejected:
                continue
            assert expectation.ended is expectation.kind, f"sequence {handle} ended with {expectation.ended}"
            assert expectation.starts <= 1
            if expectation.kind not in (FinishKind.ABORTED, FinishKind.FAILED, FinishKind.NO_ROOM):
                assert expectation.got == expectation.output
        assert self.scheduler.blocks.num_used == 0, "blocks leaked"

    def _compare_tables(self) -> None:
        slots = self.worker.slots
        tables = {
            slot: block_table(slots, slot) for slot in range(self.config.max_num_seqs) if block_table(slots, slot)
        }
        running = self.scheduler._batch.slots.running()
        assert tables == {sequence.slot: sequence.blocks for sequence in running}, (
            "worker and scheduler disagree about block tables"
        )
        for slot in tables:
            expectation = self.sequences[int(slots.columns.sampling["seed"][slot])]
            computed = int(slots.columns.num_computed[slot])
            self.worker.check_context(slot, (expectation.prompt + expectation.output)[:computed])

    def _finish(self, event: Event[SeqFinished]) -> None:
        frontend, finish = event
        assert frontend == FRONTEND
        expectation = self.sequences[finish.handle]
        assert expectation.ended is None, f"{finish.handle} ended twice"
        assert not expectation.cancelled, f"{finish.handle} ended after it was cancelled"
        if finish.kind is FinishKind.NO_ROOM:
            assert len(expectation.prompt) + len(expectation.got) >= finish.limit == self.config.longest
            expectation.kind = finish.kind
        expectation.ended = finish.kind
        expectation.paused = False

    def _reject(self, event: Event[Rejected]) -> None:
        frontend, rejection = event
        assert frontend == FRONTEND
        expectation = self.sequences[rejection.handle]
        assert expectation.ended is None
        assert not expectation.got
        expectation.cancelled = True
        self.rejections.append(rejection)


def _worker(config: SchedulerConfig) -> ContentWorker:
    return ContentWorker(
        SlotLimits(
            max_num_seqs=config.max_num_seqs,
            max_model_len=config.max_model_len,
            max_num_batched_tokens=config.max_num_batched_tokens,
            block_size=config.block_size,
            num_blocks=config.num_blocks,
            vocab_size=config.vocab_size,
        )
    )
