"""The running batch: sequences that have a slot and blocks, and how far the plans have taken them.

Owns the slots, the block manager and the list of slots to release with the next plan. It does not know the queue, nor
why a sequence leaves. `slots.planned` advances here and nowhere else.

A slot's numbers are columns: numpy arrays of length `max_num_seqs`. A decode step touches all running slots with a
handful of vector operations; single sequences are looked at only where one of them crosses a block border, ends,
arrives or is preempted. That keeps the engine's step under its budget: a loop over 256 sequence objects costs more than
everything else in the step together.

    received   known tokens: the prompt and what has come back from the worker
    planned    tokens whose KV some plan already computes; the next position to compute
    prefill_to known tokens at admission: below it the slot is prefilling, from there on it decodes
    last       prompt and output end with the token at this position, at the latest; it is sampled but never computed
    capacity   tokens that the slot's block table can hold
"""

import numpy as np

from pagewire.scheduler_svc.engine.block_manager import BlockManager
from pagewire.scheduler_svc.engine.cache_log import CacheLog
from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.scheduler_svc.engine.sequence import NO_SLOT, Sequence
from pagewire.scheduler_svc.engine.steps import ScoredChunk, StepChunks, StepSize
from pagewire.wire.columns import BoolArray, IndexArray, Int32Array, pack
from pagewire.wire.plan import Admit


class SlotTable:
    """The only writer of slot columns."""

    def __init__(self, max_num_seqs: int, block_size: int) -> None:
        self._free = list(range(max_num_seqs - 1, -1, -1))
        self._sequences: list[Sequence | None] = [None] * max_num_seqs
        self.received: Int32Array = np.zeros(max_num_seqs, np.int32)
        self.planned: Int32Array = np.zeros(max_num_seqs, np.int32)
        self.prefill_to: Int32Array = np.zeros(max_num_seqs, np.int32)
        self.last: Int32Array = np.zeros(max_num_seqs, np.int32)
        self.capacity: Int32Array = np.zeros(max_num_seqs, np.int32)
        self.frontend: Int32Array = np.zeros(max_num_seqs, np.int32)
        self.handle: Int32Array = np.zeros(max_num_seqs, np.int32)
        self.generation: Int32Array = np.zeros(max_num_seqs, np.int32)
        """Counts the sequences a slot has held, so that a late result is not taken for the next holder's."""
        self.decoding: BoolArray = np.zeros(max_num_seqs, np.bool_)
        self.heeds_eos: BoolArray = np.zeros(max_num_seqs, np.bool_)
        self.may_end_at: Int32Array = np.zeros(max_num_seqs, np.int32)
        """The length from which on any token may end the sequence: its longest, or 0 where it has stop ids."""
        self.tail: Int32Array = np.zeros((max_num_seqs, block_size), np.int32)
        """Received tokens that are not yet in the sequence's `tokens`; position p stands in column p % block_size.
        They never reach over a multiple of the block size, because `flush_tail` is called there."""

    @property
    def num_free(self) -> int:
        """Slots without a sequence."""
        return len(self._free)

    def sequence(self, slot: int) -> Sequence:
        """The sequence in a slot that holds one."""
        sequence = self._sequences[slot]
        assert sequence is not None, f"slot {slot} is empty"
        return sequence

    def running(self) -> list[Sequence]:
        """Every sequence that has a slot."""
        return [sequence for sequence in self._sequences if sequence is not None]

    def admit(self, sequence: Sequence, *, start: int, capacity: int, max_len: int) -> int:
        """Give a sequence the lowest free slot that comes to hand; `start` is the first position it computes."""
        slot = self._free.pop()
        self._sequences[slot] = sequence
        known = len(sequence.tokens)
        self.received[slot] = known
        self.planned[slot] = start
        self.prefill_to[slot] = known
        self.last[slot] = max_len - 1
        self.capacity[slot] = capacity
        self.frontend[slot] = sequence.key.frontend
        self.handle[slot] = sequence.key.handle
        self.heeds_eos[slot] = not sequence.ignore_eos
        self.may_end_at[slot] = 0 if sequence.stop_token_ids else max_len
        return slot

    def release(self, slot: int) -> None:
        """Empty a slot. What is still in flight for it no longer counts."""
        self._sequences[slot] = None
        self.decoding[slot] = False
        self.generation[slot] += 1
        self._free.append(slot)

    def receive(self, slots: IndexArray, tokens: Int32Array) -> Int32Array:
        """One token has come back for each of these slots; returns the sequences' lengths with it."""
        size = self.tail.shape[1]
        positions = self.received[slots]
        columns = (positions % size).astype(np.intp)
        self.tail[slots, columns] = tokens
        lengths = positions + 1
        self.received[slots] = lengths
        for slot in slots[columns == size - 1].tolist():
            self.flush_tail(slot)
        return lengths

    def may_end(
        self, slots: IndexArray, tokens: Int32Array, lengths: Int32Array, eos_token_ids: tuple[int, ...]
    ) -> BoolArray:
        """Which of these slots' sequences the token that has come back, at that length, may end; no other ends."""
        suspects: BoolArray = lengths >= self.may_end_at[slots]
        for eos in eos_token_ids:
            ends = tokens == eos
            if np.count_nonzero(ends):
                suspects |= ends & self.heeds_eos[slots]
        return suspects

    def flush_tail(self, slot: int) -> None:
        """Append what the tail column holds beyond the sequence's `tokens` to them."""
        sequence = self.sequence(slot)
        known, received = len(sequence.tokens), self.received.item(slot)
        if received > known:
            size = self.tail.shape[1]
            first = known % size
            sequence.tokens.frombytes(self.tail[slot, first : first + received - known].tobytes())


class RunningBatch:
    """Admits sequences, moves them forward, and takes their memory back."""

    def __init__(self, config: SchedulerConfig, log: CacheLog | None = None) -> None:
        self._block_size = config.block_size
        self._longest = config.longest
        self.slots = SlotTable(config.max_num_seqs, config.block_size)
        self.blocks = BlockManager(
            config.num_blocks, config.block_size, enable_prefix_caching=config.enable_prefix_caching, log=log
        )
        self._prefilling: list[Sequence] = []
        self._released: list[int] = []

    def admit(self, sequence: Sequence, *, reserve: int) -> Admit | None:
        """Give a sequence a slot and blocks for all its known tokens, if `reserve` blocks stay free; a slot must be
        free. Its prefill starts behind the longest cached prefix."""
        if not self.blocks.try_admit(sequence, reserve=reserve):
            return None
        known = len(sequence.tokens)
        # The last token is computed even where its KV is cached: only its logits can yield the next one.
        start = min(sequence.num_cached, known - 1)
        slot = self.slots.admit(
            sequence,
            start=start,
            capacity=len(sequence.blocks) * self._block_size,
            max_len=min(sequence.max_len, self._longest),
        )
        sequence.slot = slot
        sequence.scores_prompt = sequence.awaits_scores
        self._prefilling.append(sequence)
        return Admit(
            slot=slot,
            tokens=sequence.tokens.tobytes(),
            prompt_len=sequence.prompt_len,
            num_cached=sequence.num_cached,
            blocks=pack(sequence.blocks),
            sampling=sequence.sampling,
            controls=sequence.controls,
            logprobs=sequence.logprobs,
            prompt_logprobs=sequence.prompt_logprobs if sequence.scores_prompt else None,
        )

    def release(self, sequence: Sequence, *, keep_cached: bool = True) -> None:
        """Take slot and blocks away; its `tokens` are complete then. Its KV stays cached, if that is sound."""
        self.slots.flush_tail(sequence.slot)
        self._publish_blocks(sequence)
        self.blocks.release(sequence, keep_cached=keep_cached)
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)
        self.slots.release(sequence.slot)
        self._released.append(sequence.slot)
        sequence.slot = NO_SLOT

    def take_released(self) -> list[int]:
        """Slots released since the last call."""
        released, self._released = self._released, []
        return released

    def decodable(self) -> BoolArray:
        """Slots that decode in the next step: prefilled, and their last token not yet in flight."""
        return self.slots.decoding & (self.slots.planned < self.slots.last)

    def grow(self, active: BoolArray) -> tuple[list[tuple[int, int]], list[Sequence]]:
        """Give a block to each active slot whose table is full.

        Returns the (slot, block) pairs, and the sequences that had to leave for it: released, and out of `active`.
        """
        slots = self.slots
        full = (active & (slots.planned >= slots.capacity)).nonzero()[0]
        if not len(full):
            return [], []
        pairs: list[tuple[int, int]] = []
        victims: list[Sequence] = []
        needy = [slots.sequence(slot) for slot in full.tolist()]
        if len(needy) > self.blocks.num_free:
            # The first by priority first: a victim never comes before who needs its blocks, so it has no pair yet. With
            # blocks for all there is no victim, and the order does not matter.
            needy.sort(key=lambda s: s.priority_key)
        for sequence in needy:
            while sequence.slot != NO_SLOT:
                self._publish_blocks(sequence)
                block = self.blocks.try_grow(sequence)
                if block is not None:
                    slots.capacity[sequence.slot] += self._block_size
                    pairs.append((sequence.slot, block))
                    break
                victim = self._last_by_priority()
                active[victim.slot] = False
                self.release(victim)
                victims.append(victim)
        return pairs, victims

    def advance_decodes(self, active: BoolArray) -> None:
        """Each of these slots computes one token."""
        self.slots.planned += active

    def unfinished_prefills(self) -> list[Sequence]:
        """Sequences with prompt tokens left to plan, by priority."""
        return sorted(self._prefilling, key=lambda s: s.priority_key)

    def advance_prefill(self, sequence: Sequence, chunks: StepChunks) -> None:
        """Plan the next chunk of a sequence, if there is room for one.

        Its full blocks are published at once, so that a sequence admitted in this same step can share them.
        """
        slot = sequence.slot
        start = self.slots.planned.item(slot)
        size = chunks.take(self.slots.prefill_to.item(slot) - start, scores=sequence.scores_prompt)
        if size == 0:
            return
        self.slots.planned[slot] += size
        self._publish_blocks(sequence)
        if sequence.scores_prompt and (count := min(start + size, sequence.prompt_len - 1) - start) > 0:
            generation, candidates = self.slots.generation.item(slot), sequence.prompt_logprobs or 0
            chunks.scored.append(ScoredChunk(len(chunks.pairs), slot, generation, start + 1, count, candidates))
        chunks.pairs.append((slot, size))

    def size_of(self, decodes: IndexArray, chunks: list[tuple[int, int]], ended_prefills: list[int]) -> StepSize:
        """How large a step is that has been planned: these slots' decodes, these chunks, and which slots these end."""
        planned = self.slots.planned
        tokens = len(decodes)
        attended = int(planned[decodes].sum(dtype=np.int64))
        for slot, size in chunks:
            tokens += size
            attended += size * planned.item(slot) - size * (size - 1) // 2
        controls = [self.slots.sequence(slot).controls for slot in ended_prefills]
        grammars = sum(each is not None and each.grammar != "" for each in controls)
        return StepSize(tokens, attended, grammars)

    def end_prefills(self, chunks: list[tuple[int, int]]) -> list[int]:
        """Let slots whose last chunk is planned decode from the next step on; returns them in order of the chunks."""
        slots = self.slots
        ended = [slot for slot, _ in chunks if slots.planned[slot] == slots.prefill_to[slot]]
        for slot in ended:
            slots.decoding[slot] = True
            self._prefilling.remove(slots.sequence(slot))
        return ended

    def _last_by_priority(self) -> Sequence:
        slots = self.slots
        # A slot whose last token is in flight ends with the next result: its blocks come free without recomputing.
        ending = slots.decoding & (slots.planned >= slots.last)
        return max((s for s in slots.running() if not ending[s.slot]), key=lambda s: s.priority_key)

    def _publish_blocks(self, sequence: Sequence) -> None:
        """Put full blocks into the prefix cache, as far as tokens are known and their KV is planned.

        The tail need not be flushed for that: it never holds a full block.
        """
        slots, slot = self.slots, sequence.slot
        self.blocks.publish(sequence, min(slots.planned.item(slot), slots.received.item(slot)))
