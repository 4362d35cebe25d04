"""The plan packer: what a device must know of a plan, in one piece of host memory, so that one copy brings it there.

    part of each sequence (SEQ_FIELDS words) │ token ids of chunks │ indices of changed words │ their new values

Reads the slots' columns after the plan was applied, and the plan's step; decides nothing. A step that is captured finds
the sequences at the very start of the buffer, whatever follows. What a slot held before its admission needs no change:
only slots that a plan runs are ever read, and each of these was admitted, and so overwritten, since.
"""

from dataclasses import dataclass

import numpy as np

from pagewire.wire.columns import ROW_WORDS, Int32Array, words_of
from pagewire.worker.cuda.slot_state import SlotLayout
from pagewire.worker.kernels.contract import PADDING_SLOT, SEQ_FIELDS
from pagewire.worker.slots.columns import SlotColumns, SlotLimits
from pagewire.worker.slots.state import Step

_FIXED_WORDS = ROW_WORDS + 2
"""Words of an admitted slot besides its table: sampling parameters, length, cached length."""


def packed_capacity(limits: SlotLimits) -> int:
    """Words of the largest plan: every slot admitted with a full table, and every row a chunk's."""
    layout = SlotLayout.of(limits)
    most_changes = limits.max_num_seqs * (_FIXED_WORDS + layout.table_len)
    return limits.max_num_seqs * SEQ_FIELDS + limits.max_num_batched_tokens + 2 * most_changes


@dataclass(frozen=True, slots=True)
class PackedPlan:
    """How much of each part there is, in words."""

    num_seqs: int
    """With padding."""
    num_ids: int
    num_changes: int

    @property
    def ids_start(self) -> int:
        return self.num_seqs * SEQ_FIELDS

    @property
    def changes_start(self) -> int:
        return self.ids_start + self.num_ids

    @property
    def num_words(self) -> int:
        return self.changes_start + 2 * self.num_changes


class PlanPacker:
    """Packs plans for one set of slots."""

    def __init__(self, columns: SlotColumns, limits: SlotLimits) -> None:
        self._columns = columns
        self._layout = SlotLayout.of(limits)

    def pack(self, step: Step, num_seqs: int, out: Int32Array) -> PackedPlan:
        """Fills `out` (see `packed_capacity`), the sequences padded to num_seqs."""
        num_ids = sum(len(chunk.tokens) for chunk in step.chunks)
        seqs = out[: num_seqs * SEQ_FIELDS].reshape(num_seqs, SEQ_FIELDS)
        self._put_seqs(step, seqs, out[num_seqs * SEQ_FIELDS : num_seqs * SEQ_FIELDS + num_ids])
        indices, values = self._changes(step)
        packed = PackedPlan(num_seqs, num_ids, len(indices))
        out[packed.changes_start : packed.changes_start + len(indices)] = indices
        out[packed.changes_start + len(indices) : packed.num_words] = values
        return packed

    def _put_seqs(self, step: Step, seqs: Int32Array, ids: Int32Array) -> None:
        num_decodes = len(step.decode_slots)
        rows = np.arange(len(seqs), dtype=np.int32)
        seqs[:, 0] = PADDING_SLOT
        seqs[:num_decodes, 0] = step.decode_slots
        seqs[:, 1] = rows
        seqs[:, 2] = 1
        seqs[:, 3] = -1
        seqs[:, 4] = rows  # a padding row samples too: the batch is of one shape
        first_row, first_id, sample = num_decodes, 0, num_decodes
        for index, chunk in enumerate(step.chunks, start=num_decodes):
            size = len(chunk.tokens)
            seqs[index] = (chunk.slot, first_row, size, first_id, sample if chunk.ends_prefill else -1)
            ids[first_id : first_id + size] = chunk.tokens
            first_row, first_id, sample = first_row + size, first_id + size, sample + chunk.ends_prefill

    def _changes(self, step: Step) -> tuple[Int32Array, Int32Array]:
        """Indices of words and their values, each index once."""
        layout, columns = self._layout, self._columns
        grown = layout.block_tables + step.grow_slots * layout.table_len + step.grow_indices
        if not step.admitted:
            return grown, step.grow_blocks
        # An admitted slot's table is written as it stands, with what the same plan has grown it by.
        is_new = np.isin(step.grow_slots, np.asarray(step.admitted, np.int32))
        indices, values = [grown[~is_new]], [step.grow_blocks[~is_new]]
        starts = {chunk.slot: chunk.start for chunk in step.chunks}
        for slot in step.admitted:
            num_blocks = int(columns.num_blocks[slot])
            first = layout.block_tables + slot * layout.table_len
            indices += [self._fixed_indices(slot), np.arange(first, first + num_blocks, dtype=np.int32)]
            values += [
                self._fixed_values(slot, starts.get(slot, int(columns.num_computed[slot]))),
                columns.block_tables[slot, :num_blocks],
            ]
        return np.concatenate(indices), np.concatenate(values)

    def _fixed_indices(self, slot: int) -> Int32Array:
        layout = self._layout
        first = layout.sampling + ROW_WORDS * slot
        words = [*range(first, first + ROW_WORDS), layout.length + slot, layout.cached_len + slot]
        return np.asarray(words, np.int32)

    def _fixed_values(self, slot: int, length: int) -> Int32Array:
        columns = self._columns
        values = np.empty(_FIXED_WORDS, np.int32)
        values[:ROW_WORDS] = words_of(columns.sampling[slot : slot + 1])[0]
        values[ROW_WORDS] = length
        values[ROW_WORDS + 1] = columns.cached_len[slot]
        return values
