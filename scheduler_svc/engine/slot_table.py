"""The running batch as columns: one row per slot, numpy arrays of length `max_num_seqs`.

Owns which slot is free and the per-slot numbers that change every step. It does not know blocks by id, nor the queue.
A decode step touches all running slots with a handful of vector operations; single sequences are looked at only where
one of them crosses a block border, ends, arrives or is preempted. That keeps the engine's step under its budget: a
loop over 256 sequence objects costs more than everything else in the step together.

    received   known tokens: the prompt and what has come back from the worker
    planned    tokens whose KV some plan already computes; the next position to compute
    prefill_to known tokens at admission: below it the slot is prefilling, from there on it decodes
    max_len    prompt and output end at this length, at the latest; position max_len - 1 is sampled but never computed
    capacity   tokens that the slot's block table can hold
"""

import numpy as np
import numpy.typing as npt

from pagewire.scheduler_svc.engine.sequence import Sequence
from pagewire.wire.columns import Int32Array

BoolArray = npt.NDArray[np.bool_]


class SlotTable:
    """The only writer of slot columns."""

    def __init__(self, max_num_seqs: int, block_size: int) -> None:
        self._free = list(range(max_num_seqs - 1, -1, -1))
        self._sequences: list[Sequence | None] = [None] * max_num_seqs
        self.received: Int32Array = np.zeros(max_num_seqs, np.int32)
        self.planned: Int32Array = np.zeros(max_num_seqs, np.int32)
        self.prefill_to: Int32Array = np.zeros(max_num_seqs, np.int32)
        self.max_len: Int32Array = np.zeros(max_num_seqs, np.int32)
        self.capacity: Int32Array = np.zeros(max_num_seqs, np.int32)
        self.frontend: Int32Array = np.zeros(max_num_seqs, np.int32)
        self.handle: Int32Array = np.zeros(max_num_seqs, np.int32)
        self.tenure: Int32Array = np.zeros(max_num_seqs, np.int32)
        """Counts the sequences a slot has held, so that a late result is not taken for the next holder's."""
        self.decoding: BoolArray = np.zeros(max_num_seqs, np.bool_)
        self.heeds_eos: BoolArray = np.zeros(max_num_seqs, np.bool_)
        self.has_stop_ids: BoolArray = np.zeros(max_num_seqs, np.bool_)
        self.tail: Int32Array = np.zeros((max_num_seqs, block_size), np.int32)
        """Received tokens that are not yet in the sequence's `tokens`; position p stands in column p % block_size.
        They never reach over a multiple of the block size, because `flush_tail` is called there."""

    @property
    def num_free(self) -> int:
        """Slots without a sequence."""
        return len(self._free)

    def sequence(self, slot: int) -> Sequence:
        """The sequence in an occupied slot."""
        sequence = self._sequences[slot]
        assert sequence is not None, f"slot {slot} is empty"
        return sequence

    def running(self) -> list[Sequence]:
        """Every sequence that has a slot."""
        return [sequence for sequence in self._sequences if sequence is not None]

    def occupy(self, sequence: Sequence, *, start: int, capacity: int, max_len: int) -> int:
        """Give a sequence the lowest free slot that comes to hand; `start` is the first position it computes."""
        slot = self._free.pop()
        self._sequences[slot] = sequence
        known = len(sequence.tokens)
        self.received[slot] = known
        self.planned[slot] = start
        self.prefill_to[slot] = known
        self.max_len[slot] = max_len
        self.capacity[slot] = capacity
        self.frontend[slot] = sequence.key.frontend
        self.handle[slot] = sequence.key.handle
        self.heeds_eos[slot] = not sequence.ignore_eos
        self.has_stop_ids[slot] = bool(sequence.stop_token_ids)
        return slot

    def vacate(self, slot: int) -> None:
        """Empty a slot. What is still in flight for it no longer counts."""
        self._sequences[slot] = None
        self.decoding[slot] = False
        self.tenure[slot] += 1
        self._free.append(slot)

    def flush_tail(self, slot: int) -> None:
        """Append what the tail column holds beyond the sequence's `tokens` to them."""
        sequence = self.sequence(slot)
        known, received = len(sequence.tokens), self.received.item(slot)
        if received > known:
            size = self.tail.shape[1]
            first = known % size
            sequence.tokens.frombytes(self.tail[slot, first : first + received - known].tobytes())
