"""The batch builder: a step's rows become the model's batch.

Owns the buffers that batches are made of, sized once for the largest step; a batch is a set of views of them, valid
until the next one is built. Reads slot columns. Costs a few vector operations for all
decoding slots together, and a few per chunk.
"""

import numpy as np
import torch

from pagewire.wire.logits import MAX_SCORED_ROWS
from pagewire.worker.attention.base import Batch
from pagewire.worker.slots.columns import SlotColumns, SlotLimits
from pagewire.worker.slots.state import Chunk, Step


class BatchBuilder:
    """Builds batches for the CPU; one per runner."""

    def __init__(self, columns: SlotColumns, limits: SlotLimits) -> None:
        max_rows, max_seqs = limits.max_num_batched_tokens, limits.max_num_seqs
        self._columns = columns
        self._block_size = limits.block_size
        self._input_ids = np.zeros(max_rows, np.int64)
        self._positions = np.zeros(max_rows, np.int64)
        self._write_rows = np.zeros(max_rows, np.int64)
        self._kv_positions = np.zeros(max_rows, np.int64)
        self._query_starts = np.zeros(max_seqs + 1, np.int32)
        self._context_lens = np.zeros(max_seqs, np.int32)
        self._sample_rows = np.zeros(max_seqs + MAX_SCORED_ROWS, np.int64)
        """Also of those that score."""
        self._block_tables = np.zeros(max_seqs * limits.max_blocks_per_seq, np.int32)
        self._row_numbers = np.arange(max_rows, dtype=np.int64)

    def build(self, step: Step) -> Batch:
        """The batch of a step that has at least one row. What the steps before it sampled is recorded."""
        num_decodes, num_seqs = len(step.decode_slots), len(step.decode_slots) + len(step.chunks)
        slots = np.concatenate([step.decode_slots, np.asarray([chunk.slot for chunk in step.chunks], np.int32)])
        self._put_decodes(step)
        num_rows = num_writes = num_samples = num_decodes
        num_scored = {scored.chunk: len(scored.tokens) for scored in step.scored}
        for index, chunk in enumerate(step.chunks, start=num_decodes):
            num_writes += self._put_chunk(chunk, index, num_rows, num_writes)
            if scores := num_scored.get(index - num_decodes):
                self._sample_rows[num_samples : num_samples + scores] = self._row_numbers[num_rows : num_rows + scores]
                num_samples += scores
            num_rows += len(chunk.tokens)
            if chunk.ends_prefill:
                self._sample_rows[num_samples] = num_rows - 1
                num_samples += 1
        self._query_starts[num_seqs] = num_rows

        context_lens = self._context_lens[:num_seqs]
        max_blocks = -(-int(context_lens.max()) // self._block_size)
        tables = self._block_tables[: num_seqs * max_blocks].reshape(num_seqs, max_blocks)
        tables[:] = self._columns.block_tables[slots, :max_blocks]
        starts = self._query_starts[: num_seqs + 1].tolist()
        return Batch(
            input_ids_T=torch.from_numpy(self._input_ids[:num_rows]),
            positions_T=torch.from_numpy(self._positions[:num_rows]),
            query_starts=torch.from_numpy(self._query_starts[: num_seqs + 1]),
            context_lens_B=torch.from_numpy(context_lens),
            block_tables_BM=torch.from_numpy(tables),
            write_rows_W=torch.from_numpy(self._write_rows[:num_writes]),
            kv_positions_W=torch.from_numpy(self._kv_positions[:num_writes]),
            sample_rows_S=torch.from_numpy(self._sample_rows[:num_samples]),
            num_decodes=num_decodes,
            seq_rows=tuple(
                (start, end - start, context_len)
                for start, end, context_len in zip(starts[:-1], starts[1:], context_lens.tolist(), strict=True)
            ),
        )

    def _put_decodes(self, step: Step) -> None:
        """One row per decoding slot; all of them are written, because a decoding slot is past its cached part."""
        slots, positions, count = step.decode_slots, step.decode_positions, len(step.decode_slots)
        self._input_ids[:count] = self._columns.token_ids[slots, positions]
        self._positions[:count] = positions
        self._query_starts[:count] = self._row_numbers[:count]
        self._context_lens[:count] = positions + 1
        self._sample_rows[:count] = self._row_numbers[:count]
        self._write_rows[:count] = self._row_numbers[:count]
        block_index, offset = np.divmod(positions, self._block_size)
        blocks = self._columns.block_tables[slots, block_index].astype(np.int64)
        self._kv_positions[:count] = blocks * self._block_size + offset

    def _put_chunk(self, chunk: Chunk, index: int, first_row: int, first_write: int) -> int:
        """The rows of one chunk; returns how many of them are written: those at the slot's cached length and after."""
        size = len(chunk.tokens)
        positions = np.arange(chunk.start, chunk.start + size)
        self._input_ids[first_row : first_row + size] = chunk.tokens
        self._positions[first_row : first_row + size] = positions
        self._query_starts[index] = first_row
        self._context_lens[index] = chunk.start + size
        num_shared = min(size, max(0, int(self._columns.cached_len[chunk.slot]) - chunk.start))
        num_written = size - num_shared
        written = slice(first_write, first_write + num_written)
        self._write_rows[written] = self._row_numbers[first_row + num_shared : first_row + size]
        block_index, offset = np.divmod(positions[num_shared:], self._block_size)
        blocks = self._columns.block_tables[chunk.slot, block_index].astype(np.int64)
        self._kv_positions[written] = blocks * self._block_size + offset
        return num_written
