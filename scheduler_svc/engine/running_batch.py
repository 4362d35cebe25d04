"""The running batch: sequences that have a slot and blocks, and how far the plans have taken them.

Owns the slots, the block manager and the list of slots to release with the next plan. It does not know the queue, nor
why a sequence leaves. `slots.planned` advances here and nowhere else.
"""

import numpy as np

from pagewire.scheduler_svc.engine.block_manager import BlockManager
from pagewire.scheduler_svc.engine.sequence import NO_SLOT, Sequence
from pagewire.scheduler_svc.engine.slot_table import BoolArray, SlotTable
from pagewire.scheduler_svc.engine.steps import SchedulerConfig
from pagewire.wire.columns import Int32Array, pack
from pagewire.wire.plan import Admit


class RunningBatch:
    """Seats sequences, moves them forward, and takes their memory back."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._block_size = config.block_size
        self._longest = config.longest
        self.slots = SlotTable(config.max_num_seqs, config.block_size)
        self.blocks = BlockManager(
            config.num_blocks, config.block_size, enable_prefix_caching=config.enable_prefix_caching
        )
        self._prefilling: list[Sequence] = []
        self._released: list[int] = []

    def seat(self, sequence: Sequence, *, reserve: int) -> Admit | None:
        """Give a sequence a slot and blocks for all its known tokens, if `reserve` blocks stay free; a slot must be
        free. Its prefill starts behind the longest cached prefix."""
        if not self.blocks.try_admit(sequence, reserve=reserve):
            return None
        known = len(sequence.tokens)
        # The last token is computed even where its KV is cached: only its logits can yield the next one.
        start = min(sequence.num_cached, known - 1)
        slot = self.slots.occupy(
            sequence,
            start=start,
            capacity=len(sequence.blocks) * self._block_size,
            max_len=min(sequence.max_len, self._longest),
        )
        sequence.slot = slot
        self._prefilling.append(sequence)
        return Admit(
            slot=slot,
            num_tokens=known,
            tokens=sequence.tokens[start:].tobytes(),
            num_cached=sequence.num_cached,
            blocks=pack(sequence.blocks),
            sampling=sequence.sampling,
        )

    def vacate(self, sequence: Sequence, *, keep_cached: bool = True) -> None:
        """Take slot and blocks away; its `tokens` are complete then. Its KV stays cached, if that is sound."""
        self.slots.flush_tail(sequence.slot)
        self._offer_blocks(sequence)
        if not keep_cached:
            self.blocks.disown(sequence)
        self.blocks.release(sequence)
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)
        self.slots.vacate(sequence.slot)
        self._released.append(sequence.slot)
        sequence.slot = NO_SLOT

    def take_released(self) -> list[int]:
        """Slots vacated since the last call."""
        released, self._released = self._released, []
        return released

    def decodable(self) -> BoolArray:
        """Slots that decode in the next step: prefilled, and their last token not yet in flight."""
        return self.slots.decoding & (self.slots.planned < self.slots.max_len - 1)

    def grow(self, active: BoolArray) -> tuple[list[tuple[int, int]], list[Sequence]]:
        """Give a block to each active slot whose table is full.

        Returns the (slot, block) pairs, and the sequences that had to leave for it: vacated, and out of `active`.
        """
        slots = self.slots
        full = np.flatnonzero(active & (slots.planned >= slots.capacity))
        pairs: list[tuple[int, int]] = []
        victims: list[Sequence] = []
        needy = [slots.sequence(slot) for slot in full.tolist()]
        if len(needy) > self.blocks.num_free:
            # The most important first: a victim is never more important than who needs its blocks, so it has no pair
            # yet. With blocks for all there is no victim, and the order does not matter.
            needy.sort(key=lambda s: s.importance)
        for sequence in needy:
            while sequence.slot != NO_SLOT:
                self._offer_blocks(sequence)
                block = self.blocks.try_grow(sequence)
                if block is not None:
                    slots.capacity[sequence.slot] += self._block_size
                    pairs.append((sequence.slot, block))
                    break
                victim = self._least_important()
                active[victim.slot] = False
                self.vacate(victim)
                victims.append(victim)
        return pairs, victims

    def advance_decodes(self, slots: Int32Array) -> None:
        """Each of these slots computes one token."""
        self.slots.planned[slots] += 1

    def unfinished_prefills(self) -> list[Sequence]:
        """Sequences with prompt tokens left to plan, the most important first."""
        return sorted(self._prefilling, key=lambda s: s.importance)

    def advance_prefill(self, sequence: Sequence, budget: int) -> tuple[int, int]:
        """Plan the next chunk of a sequence, at most `budget` tokens; returns (slot, tokens).

        Its full blocks are offered to others at once, so that a sequence admitted in this same step can share them.
        """
        slot = sequence.slot
        size = min(budget, int(self.slots.prefill_to[slot] - self.slots.planned[slot]))
        self.slots.planned[slot] += size
        self._offer_blocks(sequence)
        return slot, size

    def end_prefills(self, chunks: list[tuple[int, int]]) -> list[int]:
        """Let slots whose last chunk is planned decode from the next step on; returns them in order of the chunks."""
        slots = self.slots
        ended = [slot for slot, _ in chunks if slots.planned[slot] == slots.prefill_to[slot]]
        for slot in ended:
            slots.decoding[slot] = True
            self._prefilling.remove(slots.sequence(slot))
        return ended

    def _least_important(self) -> Sequence:
        slots = self.slots
        # A slot whose last token is in flight ends with the next result: its blocks come free without recomputing.
        ending = slots.decoding & (slots.planned >= slots.max_len - 1)
        return max((s for s in slots.running() if not ending[s.slot]), key=lambda s: s.importance)

    def _offer_blocks(self, sequence: Sequence) -> None:
        """Put full blocks into the prefix cache, as far as tokens are known and their KV is planned.

        The tail need not be flushed for that: it never holds a full block.
        """
        slots, slot = self.slots, sequence.slot
        self.blocks.register(sequence, min(slots.planned.item(slot), slots.received.item(slot)))
