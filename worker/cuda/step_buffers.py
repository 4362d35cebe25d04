"""Step buffers: memory of a step's inputs and of what it samples, at addresses that never change.

Sized once for the largest step; a batch is a set of views. A batch that is captured stays valid, because every step
fills the same memory.
"""

from dataclasses import dataclass

import torch

from pagewire.wire.columns import ROW_WORDS
from pagewire.worker.attention.base import Batch
from pagewire.worker.kernels.contract import SEQ_FIELDS, StepTensors
from pagewire.worker.slots.columns import SlotLimits

SeqRows = tuple[tuple[int, int, int], ...]
"""As `Batch.seq_rows`."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a batch's tensors are as large as."""

    seq_rows: SeqRows
    num_decodes: int
    num_samples: int

    @classmethod
    def of_decodes(cls, num_seqs: int, max_context_len: int) -> "StepShape":
        """Sequences that decode, at contexts that are known on the device alone."""
        return cls(tuple((row, 1, max_context_len) for row in range(num_seqs)), num_seqs, num_seqs)

    @property
    def num_seqs(self) -> int:
        return len(self.seq_rows)

    @property
    def num_rows(self) -> int:
        return sum(rows for _, rows, _ in self.seq_rows)

    @property
    def max_rows(self) -> int:
        """Rows of the sequence that has most."""
        return max(rows for _, rows, _ in self.seq_rows)


class StepBuffers:
    """Device memory for one step at a time."""

    def __init__(self, limits: SlotLimits, packed_words: int, device: torch.device) -> None:
        """`packed_words` is the capacity for a packed plan."""
        rows, seqs = limits.max_num_batched_tokens, limits.max_num_seqs

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.packed = zeros(packed_words)
        """A plan as packed by `PlanPacker`."""
        self.tokens_S = zeros(seqs)
        """int32: what the step sampled."""
        self._all = StepTensors(
            input_ids_T=zeros(rows, dtype=torch.int64),
            positions_T=zeros(rows, dtype=torch.int64),
            kv_positions_T=zeros(rows, dtype=torch.int64),
            query_starts=zeros(seqs + 1),
            context_lens_B=zeros(seqs),
            block_tables_BM=zeros(seqs, limits.max_blocks_per_seq),
            sample_rows_S=zeros(seqs, dtype=torch.int64),
            sampling_SP=zeros(seqs, ROW_WORDS),
            sample_positions_S=zeros(seqs, dtype=torch.int64),
        )
        self._row_numbers = torch.arange(rows, dtype=torch.int64, device=device)

    def seqs_BQ(self, num_seqs: int) -> torch.Tensor:
        """The packed plan's sequences."""
        return self.packed[: num_seqs * SEQ_FIELDS].view(num_seqs, SEQ_FIELDS)

    def tensors(self, shape: StepShape) -> StepTensors:
        """Views as large as the shape."""
        rows, seqs, samples, full = shape.num_rows, shape.num_seqs, shape.num_samples, self._all
        return StepTensors(
            input_ids_T=full.input_ids_T[:rows],
            positions_T=full.positions_T[:rows],
            kv_positions_T=full.kv_positions_T[:rows],
            query_starts=full.query_starts[: seqs + 1],
            context_lens_B=full.context_lens_B[:seqs],
            block_tables_BM=full.block_tables_BM[:seqs],
            sample_rows_S=full.sample_rows_S[:samples],
            sampling_SP=full.sampling_SP[:samples],
            sample_positions_S=full.sample_positions_S[:samples],
        )

    def batch(self, step: StepTensors, shape: StepShape) -> Batch:
        """The model's view of a step's tensors. Every row has a KV position, -1 where nothing is written."""
        return Batch(
            input_ids_T=step.input_ids_T,
            positions_T=step.positions_T,
            query_starts=step.query_starts,
            context_lens_B=step.context_lens_B,
            block_tables_BM=step.block_tables_BM,
            write_rows_W=self._row_numbers[: shape.num_rows],
            kv_positions_W=step.kv_positions_T,
            sample_rows_S=step.sample_rows_S,
            num_decodes=shape.num_decodes,
            seq_rows=shape.seq_rows,
        )
