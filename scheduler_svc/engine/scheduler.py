"""The scheduler: turns arrivals, ends and results into step plans.

A plain object without I/O or clock, so that a test can drive it a million steps. It owns every sequence's tokens and
position; where each is belongs to the OpenSequences, blocks to the BlockManager, columns to the SlotTable, order of
waiting to the WaitQueue.

One step, under one budget of `max_num_batched_tokens`:

1. Every decoding slot computes one token, unless its last token is in flight already. A slot whose table is full gets a
   block; when none is free the last running sequence by priority is preempted: it waits again with all its tokens
   and is recomputed later, mostly from the prefix cache.
2. What is left of the budget goes to prefill, running sequences first, then waiting ones in order. While anything
   decodes, prefill gets at most `max_prefill_tokens_per_step`, so that a long prompt cannot stall running streams.

`plan` may be called again before the result of the plan before is applied. Positions advance when planned; tokens
become known when their result is applied; a result for a slot that has changed hands meanwhile is dropped.

Preemption and admission cannot livelock: the first running sequence by priority is never preempted, and it always fits
because `submit` refuses what could not run alone, and no sequence becomes longer than that.

A paused sequence has given slot and blocks back; it is computed again, mostly from the prefix cache, when it goes on.
"""

from dataclasses import replace

import numpy as np

from pagewire.scheduler_svc.engine.admission import UnanswerableError, check_ids, read_submission, refuse_oversized
from pagewire.scheduler_svc.engine.admitter import Admitter
from pagewire.scheduler_svc.engine.block_ledger import BlockLedger
from pagewire.scheduler_svc.engine.block_manager import BlockManager
from pagewire.scheduler_svc.engine.cache_log import CacheLog
from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.scheduler_svc.engine.events import Event, StepOutcome
from pagewire.scheduler_svc.engine.forecast import Forecast
from pagewire.scheduler_svc.engine.newcomers import Newcomers
from pagewire.scheduler_svc.engine.open_sequences import IntegrityError, OpenSequences
from pagewire.scheduler_svc.engine.queue_bounds import Amount
from pagewire.scheduler_svc.engine.results import StepRows, check_logprobs, drawn, logprobs_of_live, scores
from pagewire.scheduler_svc.engine.running_batch import RunningBatch
from pagewire.scheduler_svc.engine.sequence import Sequence, SequenceKey, SequenceStatus
from pagewire.scheduler_svc.engine.steps import Counters, PlannedStep, StepChunks
from pagewire.scheduler_svc.engine.suspects import Suspects, reason_of
from pagewire.scheduler_svc.engine.wait_queue import queue_timeout
from pagewire.wire.columns import BoolArray, pack, pack_pairs
from pagewire.wire.plan import Admit, RowFailure, StepPlan
from pagewire.wire.requests import FinishKind, Rejected, RejectKind, SeqFinished, SeqStarted, Submit


class Scheduler:
    """The only writer of sequences' tokens and position."""

    def __init__(self, config: SchedulerConfig, log: CacheLog | None = None, ledger: BlockLedger | None = None) -> None:
        """`log` is told what becomes of cached blocks, where somebody follows it; `ledger` who holds blocks, where
        somebody counts that."""
        self._config = config
        self._log = log
        self._ledger = ledger
        self._open = OpenSequences()
        self._waiting = self._open.waiting
        self._suspects = Suspects()
        self._forecast = Forecast()
        self._counters = Counters()
        self._admitter = Admitter(self._open, self._suspects, self._counters)
        self._newcomers = Newcomers(self._open)
        self._num_computed = 0
        """Tokens of all steps planned."""
        self._batch = RunningBatch(config, log, ledger)

    # What arrives and leaves

    def submit(self, frontend: int, request: Submit, now_s: float) -> Rejected | SeqFinished | None:
        """Take a sequence to wait. Returns a rejection if it can never fit or the queue is full, and its finish if the
        tokens generated so far complete it. Raises UnanswerableError for the handle of an open sequence, and ValueError
        for any other message that no correct frontend sends."""
        key = SequenceKey(frontend, request.handle)
        if key in self._open:
            raise UnanswerableError(f"frontend {frontend} submitted handle {request.handle} twice")
        sequence = read_submission(key, request, self._config, now_s)
        # What an earlier engine had begun was accepted then, and goes on as far as memory holds it.
        if not request.generated:
            if (rejection := refuse_oversized(sequence, self._config)) is not None:
                return rejection
            if (message := self._waiting.refusal(sequence, self._config)) is not None:
                retry_s = self._forecast.retry_s(now_s, sequence.tenant, len(sequence.tokens))
                return Rejected(key.handle, RejectKind.QUEUE_FULL, "", message, retry_s)
        if request.generated and (kind := sequence.end_with(sequence.tokens[-1], len(sequence.tokens), self._config)):
            return SeqFinished(key.handle, kind)
        num_ahead, tokens_ahead = self._before_start_of(sequence)
        sequence.forecast_s = self._forecast.start_s(num_ahead, tokens_ahead + len(sequence.tokens))
        self._open.add(sequence)
        return None

    def abort(self, key: SequenceKey) -> bool:
        """End a sequence without a word; false if it is not (or no longer) known."""
        sequence = self._open.get(key)
        if sequence is None:
            return False
        self._end(sequence)
        return True

    def pause(self, key: SequenceKey) -> bool:
        """Let a sequence rest: its reader is behind. It gives slot and blocks back, and gets no token until it is
        resumed; what is in flight for it is computed again then. False if it is not known, or rests already."""
        sequence = self._open.get(key)
        if sequence is None or sequence.status is SequenceStatus.PAUSED:
            return False
        if sequence.status is SequenceStatus.RUNNING:
            self._counters.preemptions += 1
            self._batch.release(sequence)
        self._open.pause(sequence)
        return True

    def resume(self, key: SequenceKey) -> bool:
        """Let a paused sequence wait for a slot again, whatever else waits; false if it is not paused."""
        sequence = self._open.get(key)
        if sequence is None or sequence.status is not SequenceStatus.PAUSED:
            return False
        self._open.wait_again(sequence)
        return True

    def abort_request(self, request_id: str, tenant: str | None) -> list[Event[SeqFinished]]:
        """End every sequence of a tenant's request; with no tenant given, of all tenants' requests of that id."""
        return [
            self._finish(sequence, FinishKind.ABORTED)
            for sequence in self._open
            if sequence.request_id == request_id and tenant in (None, sequence.tenant)
        ]

    def abort_frontend(self, frontend: int) -> int:
        """End every sequence of a frontend that is gone; returns how many."""
        left = [sequence for sequence in self._open if sequence.key.frontend == frontend]
        for sequence in left:
            self._end(sequence)
        return len(left)

    def next_deadline_s(self) -> float | None:
        """When `expire` next has something to do."""
        return self._waiting.next_deadline_s()

    def expire(self, now_s: float) -> list[Event[Rejected]]:
        """Give up on sequences that waited longer than they wished to."""
        rejections = []
        for sequence in self._open.expire(now_s):
            retry_s = self._forecast.retry_s(now_s, sequence.tenant, len(sequence.tokens))
            rejected = queue_timeout(sequence.key, now_s - sequence.arrived_s, retry_s)
            rejections.append(Event(sequence.key.frontend, rejected))
        return rejections

    def flush_cache(self) -> int:
        """Forget cached blocks that no sequence holds; returns how many."""
        return self.blocks.flush()

    def restart(self) -> list[Event[SeqFinished]]:
        """The worker and everything in it is gone: every running sequence waits again, with the tokens received.

        One that is found to end workers fails, so that it cannot end the server.
        """
        self._forecast.pause()
        running = self._batch.slots.running()
        for sequence in running:
            self._batch.release(sequence)
            self._open.wait_again(sequence)
        self._batch = RunningBatch(self._config, self._log, self._ledger)
        found = self._suspects.crashed(running, self._config.max_crashes_in_row)
        return [self._finish(sequence, FinishKind.FAILED, reason_of(sequence)) for sequence in found]

    def resize(self, config: SchedulerConfig) -> list[Event[SeqFinished]]:
        """Another worker, with memory of another size, is there; nothing may be running. Returns the sequences that are
        too long for it now. Others go on, and end where they become too long: most end before."""
        if config.block_size != self._config.block_size:
            for sequence in self._open:
                self.blocks.forget_hashes(sequence)
        self._config = config
        self._batch = RunningBatch(config, self._log, self._ledger)
        too_long = [sequence for sequence in self._open if len(sequence.tokens) >= config.longest]
        return [self._finish(sequence, FinishKind.NO_ROOM) for sequence in too_long]

    # Steps

    def plan(self, epoch: int, step_id: int, now_s: float) -> PlannedStep | None:
        """Plan one step, or none if there is nothing to compute now."""
        batch = self._batch
        if self._ledger is not None:
            self._ledger.pass_time(now_s)
        if (leaving := self._admitter.gives_way(batch)) is not None:
            self._preempt(leaving)
        active = batch.decodable()
        grow, victims = batch.grow(active)
        for victim in victims:
            self._counters.preemptions += 1
            self._open.wait_again(victim)
        decodes = active.nonzero()[0]
        budget = self._config.max_num_batched_tokens - len(decodes)
        if len(decodes):
            budget = min(budget, self._config.max_prefill_tokens_per_step)
        chunks = StepChunks(budget)
        for sequence in batch.unfinished_prefills():
            batch.advance_prefill(sequence, chunks)
        # A sequence preempted a moment ago would be first in line for the blocks that its preemption freed.
        admits, starts = ([], []) if victims else self._admit(batch, chunks, active, grow, now_s)
        decodes = active.nonzero()[0]
        if self._waiting or self._forecast.is_backlogged:
            num_served = self._num_computed + self._counters.cached_prompt_tokens
            self._forecast.observe(now_s, num_served, is_backlogged=len(self._waiting) > 0)
        if not len(decodes) and not chunks.pairs:
            return None
        idle = (batch.slots.decoding & ~active).nonzero()[0]
        batch.advance_decodes(active)
        ended_prefills = batch.end_prefills(chunks.pairs)
        rows = np.concatenate([decodes, np.array(ended_prefills, np.intp)]) if ended_prefills else decodes
        plan = StepPlan(
            epoch=epoch,
            step_id=step_id,
            release=pack(batch.take_released()),
            admit=admits,
            grow=pack_pairs(grow),
            chunks=pack_pairs(chunks.pairs),
            idle=pack(idle),
        )
        self._counters.steps += 1
        size = batch.size_of(decodes, chunks.pairs, ended_prefills)
        self._num_computed += size.tokens
        return PlannedStep(plan, rows, batch.slots.generation[rows], starts, size, chunks.scored)

    def apply(self, step: PlannedStep, result: StepRows) -> StepOutcome:
        """Take in a step's result. Steps must be applied in the order planned.

        Raises ValueError for what cannot be this step's; the scheduler is then unchanged.
        """
        has_token, tokens, failures = drawn(step, result), result.tokens, result.failures
        check_ids(tokens[has_token] if failures else tokens, self._config.vocab_size)
        if result.logprobs or result.prompt_logprobs or step.scored:
            check_logprobs(step, result, self._config.vocab_size)
        slots, rows = self._batch.slots, step.rows
        live = slots.generation[rows] == step.generations
        scored = scores(step, result, slots) if step.scored else []
        failed = []
        if failures:
            failed = [self._fail(int(rows[row]), failure) for row, failure in sorted(failures.items()) if live[row]]
            live &= has_token
        if np.count_nonzero(live) < len(live):
            rows, tokens = rows[live], tokens[live]
        if len(rows):
            self._suspects.progressed()
        lengths = slots.receive(rows, tokens)
        self._counters.output_tokens += len(rows)
        ended = [self._finish(sequence, kind) for sequence, kind in slots.ended(rows, tokens, lengths, self._config)]
        return StepOutcome(
            frontends=slots.frontend[rows],
            handles=slots.handle[rows],
            tokens=tokens,
            finishes=failed + ended,
            logprobs=logprobs_of_live(result.logprobs, live) if result.logprobs else [],
            scores=scored,
        )

    # How busy

    @property
    def has_work(self) -> bool:
        """Whether any sequence is alive that is not paused."""
        return self.num_running + self.num_waiting > 0

    @property
    def num_running(self) -> int:
        """Sequences that have a slot."""
        return self._open.num_running

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for one."""
        return len(self._waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of those."""
        return self._waiting.num_tokens

    @property
    def num_paused(self) -> int:
        """Sequences that wait for nothing but their reader."""
        return self._open.num_paused

    @property
    def num_arrivals(self) -> int:
        """Sequences taken so far."""
        return self._open.num_arrivals

    @property
    def config(self) -> SchedulerConfig:
        """The limits kept to now."""
        return self._config

    @property
    def blocks(self) -> BlockManager:
        """For its counts."""
        return self._batch.blocks

    @property
    def counters(self) -> Counters:
        """A copy of the totals."""
        return replace(self._counters)

    def check_integrity(self) -> None:
        """Recount everything. Raises IntegrityError with what does not hold."""
        running = self._batch.slots.running()
        if violations := [*self._batch.violations(), *self._open.violations(running)]:
            raise IntegrityError(violations)

    # Inside

    def _preempt(self, sequence: Sequence) -> None:
        self._counters.preemptions += 1
        self._batch.release(sequence)
        self._open.wait_again(sequence)

    def _admit(
        self, batch: RunningBatch, chunks: StepChunks, active: BoolArray, grow: list[tuple[int, int]], now_s: float
    ) -> tuple[list[Admit], list[Event[SeqStarted]]]:
        """Admit who waits. Who leaves its slot for a newcomer is no more of this step, and waits again behind that."""
        leaving = None
        if chunks.budget > 0 and not self._suspects.trial(batch.slots):
            leaving = self._newcomers.displaced(batch)
        if leaving is not None:
            self._counters.preemptions += 1
            active[leaving.slot] = False
            grow[:] = [pair for pair in grow if pair[0] != leaving.slot]
            batch.release(leaving)
        admitted = self._admitter.admit(batch, chunks, now_s)
        if leaving is not None:
            self._open.wait_again(leaving)
        return admitted

    def _fail(self, slot: int, failure: RowFailure) -> Event[SeqFinished]:
        kind = FinishKind.NOTHING_LEFT if failure.by_request else FinishKind.FAILED
        return self._finish(self._batch.slots.sequence(slot), kind, failure.reason)

    def _finish(self, sequence: Sequence, kind: FinishKind, reason: str = "") -> Event[SeqFinished]:
        # Logits that are not numbers come from KV that is not: nobody else should find it.
        self._end(sequence, keep_cached=kind is not FinishKind.FAILED)
        limit = self._config.longest if kind is FinishKind.NO_ROOM else 0
        return Event(sequence.key.frontend, SeqFinished(sequence.key.handle, kind, limit, reason))

    def _before_start_of(self, sequence: Sequence) -> Amount:
        """What must be served before a sequence that comes now could start; where every slot is taken and nobody waits,
        one like itself."""
        ahead = self._waiting.ahead_of(sequence)
        if not self._waiting.has_of(sequence.tenant) and self._newcomers.would_displace(self._batch, sequence):
            return Amount()
        if ahead.sequences or not self._batch.slots.num_free:
            return ahead.plus(Amount(1, len(sequence.tokens)))
        return ahead

    def _end(self, sequence: Sequence, *, keep_cached: bool = True) -> None:
        if sequence.status is SequenceStatus.RUNNING:
            self._batch.release(sequence, keep_cached=keep_cached)
        self._open.end(sequence)
        if sequence.started:
            self._forecast.output_ended(len(sequence.tokens) - sequence.prompt_len)
