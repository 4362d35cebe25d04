"""The running batch: sequences that have a slot and blocks, and how far the plans have taken them.

Owns the slots, the block manager and the list of slots to release with the next plan. It does not know the queue, nor
why a sequence leaves. `slots.planned` advances here and nowhere else.
"""

from collections.abc import Collection, Iterator

import numpy as np

from pagewire.scheduler_svc.engine.block_ledger import BlockLedger
from pagewire.scheduler_svc.engine.block_manager import BlockManager
from pagewire.scheduler_svc.engine.cache_log import CacheLog
from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.scheduler_svc.engine.sequence import NO_SLOT, Sequence
from pagewire.scheduler_svc.engine.slot_table import SlotTable
from pagewire.scheduler_svc.engine.steps import ScoredChunk, StepChunks, StepSize
from pagewire.wire.columns import BoolArray, IndexArray, pack
from pagewire.wire.plan import Admit


class RunningBatch:
    """Admits sequences, moves them forward, and takes their memory back."""

    def __init__(self, config: SchedulerConfig, log: CacheLog | None = None, ledger: BlockLedger | None = None) -> None:
        """`log` and `ledger` are told of blocks, where somebody wants to know."""
        self._ledger = ledger
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
        if self._ledger is not None:
            self._ledger.take(sequence.tenant, len(sequence.blocks))
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
        if self._ledger is not None:
            self._ledger.give_back(sequence.tenant, len(sequence.blocks))
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
                    if self._ledger is not None:
                        self._ledger.take(sequence.tenant, 1)
                    slots.capacity[sequence.slot] += self._block_size
                    pairs.append((sequence.slot, block))
                    break
                victim = self.last_by_priority()
                assert victim is not None, "who needs the block runs"
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

    def last_by_priority(self, *, but: Collection[Sequence] = ()) -> Sequence | None:
        """Who is to leave first where room is needed; none where nobody else than these runs on."""
        slots = self.slots
        # A slot whose last token is in flight ends with the next result: its blocks come free without recomputing.
        ending = slots.decoding & (slots.planned >= slots.last)
        others = (s for s in slots.running() if not ending[s.slot] and s not in but)
        return max(others, key=lambda s: s.priority_key, default=None)

    def last_of(self, tenant: str, priority: int) -> Sequence | None:
        """Of a tenant's sequences that decode, and whose priority is no higher, the one that is to leave first."""
        slots = self.slots
        decoding = slots.decoding & (slots.planned < slots.last)
        mine = (s for s in slots.running() if decoding[s.slot] and s.tenant == tenant and s.priority <= priority)
        return max(mine, key=lambda s: s.priority_key, default=None)

    def violations(self) -> Iterator[str]:
        """What does not hold, of slots and blocks."""
        running = self.slots.running()
        yield from self.slots.violations()
        yield from self.blocks.violations(running)
        prefilling = {sequence.slot for sequence in self._prefilling}
        if prefilling != {s.slot for s in running if not self.slots.decoding[s.slot]}:
            yield f"slots {sorted(prefilling)} prefill, which are not those that do not decode"

    def _publish_blocks(self, sequence: Sequence) -> None:
        """Put full blocks into the prefix cache, as far as tokens are known and their KV is planned.

        The tail need not be flushed for that: it never holds a full block.
        """
        slots, slot = self.slots, sequence.slot
        self.blocks.publish(sequence, min(slots.planned.item(slot), slots.received.item(slot)))
