"""The slot table: a row of numbers for each sequence that runs, in columns.

Owns the columns and which sequence holds which slot. It does not know blocks, plans or the queue.

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

from collections.abc import Iterator

import numpy as np

from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.scheduler_svc.engine.sequence import Sequence
from pagewire.wire.columns import BoolArray, IndexArray, Int32Array
from pagewire.wire.requests import FinishKind


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

    def _may_end(
        self, slots: IndexArray, tokens: Int32Array, lengths: Int32Array, eos_token_ids: tuple[int, ...]
    ) -> BoolArray:
        """Which of these slots' sequences the token that has come back, at that length, may end; no other ends."""
        suspects: BoolArray = lengths >= self.may_end_at[slots]
        for eos in eos_token_ids:
            ends = tokens == eos
            if np.count_nonzero(ends):
                suspects |= ends & self.heeds_eos[slots]
        return suspects

    def ended(
        self, slots: IndexArray, tokens: Int32Array, lengths: Int32Array, config: SchedulerConfig
    ) -> Iterator[tuple[Sequence, FinishKind]]:
        """The sequences that the token which has come back for each of these slots, at that length, ends, and why."""
        for index in self._may_end(slots, tokens, lengths, config.eos_token_ids).nonzero()[0].tolist():
            sequence = self.sequence(int(slots[index]))
            if kind := sequence.end_with(int(tokens[index]), int(lengths[index]), config):
                yield sequence, kind

    def flush_tail(self, slot: int) -> None:
        """Append what the tail column holds beyond the sequence's `tokens` to them."""
        sequence = self.sequence(slot)
        known, received = len(sequence.tokens), self.received.item(slot)
        if received > known:
            size = self.tail.shape[1]
            first = known % size
            sequence.tokens.frombytes(self.tail[slot, first : first + received - known].tobytes())

    def violations(self) -> Iterator[str]:
        """What does not hold: of slots, and of the lengths of those that have one."""
        empty = [slot for slot, sequence in enumerate(self._sequences) if sequence is None]
        if sorted(self._free) != empty:
            yield f"slots {sorted(self._free)} are free, and {empty} are empty"
        for slot, sequence in enumerate(self._sequences):
            if sequence is None:
                continue
            if sequence.slot != slot:
                yield f"{sequence.key} has slot {slot}, and says that it has {sequence.slot}"
            planned, received = self.planned.item(slot), self.received.item(slot)
            known, size = len(sequence.tokens), self.tail.shape[1]
            if not planned <= self.capacity.item(slot) == len(sequence.blocks) * size:
                room = f"room for {self.capacity.item(slot)} in {len(sequence.blocks)} blocks"
                yield f"{sequence.key} has {planned} tokens planned and {room}"
            if not known <= received <= min(known + size, sequence.max_len):
                yield f"{sequence.key} has {received} tokens received and {known} known, of {sequence.max_len} at most"
