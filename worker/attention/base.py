"""The attention seam: one step's batch as tensors, what the decoder needs of a backend, and nothing of how it works.

The decoder writes a layer's keys and values into the cache and then asks for attention, for all rows of the layer at
once. So sequences of one step may share blocks that the step itself fills. Backends read the cache in place and never
write it.

On a CUDA device a step of decodes alone is captured in a graph, `begin` included: it and `attend` read no tensor back
and launch nothing according to a value on the device. What the graph allocates in them it keeps.

Shape suffixes used throughout `worker`:

    T tokens computed in the step    B sequences in the step     S rows that sample
    H query heads                    K key/value heads           D head dimension
    E hidden size                    V vocabulary                W tokens whose KV is written
    M blocks in the longest table    P tokens in a block         N blocks in the cache
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from pagewire.worker.attention.kv_cache import KVCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of one step: sequences that decode come first, one token each, then prefill chunks.

    All index tensors are on the model's device. The runner builds a batch from resident slot state and may reuse
    its buffers: a batch is valid until the next one is built.
    """

    input_ids_T: torch.Tensor
    """int64."""
    positions_T: torch.Tensor
    """int64: index of each token in its sequence."""
    query_starts: torch.Tensor
    """int32 [B + 1]: rows of sequence b are query_starts[b] … query_starts[b + 1]."""
    context_lens_B: torch.Tensor
    """int32: tokens of KV that sequence b attends to, this step's included. On a CUDA device a batch may be padded with
    sequences of one row and 0 here: their rows' results are never used, and nothing of theirs is read or written."""
    block_tables_BM: torch.Tensor
    """int32: padded with 0 past each sequence's blocks."""
    write_rows_W: torch.Tensor
    """int64: rows whose keys and values are written, shared (cached) positions left out."""
    kv_positions_W: torch.Tensor
    """int64: where, as block id × block_size + offset. On a CUDA device W is T, and -1 stands for a row that is not
    written."""
    sample_rows_S: torch.Tensor
    """int64: rows whose logits are wanted, because they sample or score, ascending, which is the plan's order."""
    num_decodes: int
    """The first num_decodes sequences have one row each."""
    seq_rows: tuple[tuple[int, int, int], ...]
    """The same as (first row, number of rows, context length) for every sequence, as Python integers, so that a backend
    that loops over sequences need not read a tensor back. In a batch that is captured in a CUDA graph the context
    length is max_model_len, an upper bound: the true one is in context_lens_B alone."""

    @property
    def is_decode(self) -> bool:
        """Whether every sequence decodes: one row each, which is written and samples."""
        return self.num_decodes == len(self.seq_rows)

    @property
    def all_rows_sample(self) -> bool:
        """Whether sample_rows_S is every row, as in a step of decodes, or of chunks of one token."""
        return self.sample_rows_S.shape[0] == self.input_ids_T.shape[0]


class AttentionStep(Protocol):
    """Attention for one batch: whatever a backend can work out once and use in every layer. Valid as long as the
    batch is."""

    def attend(self, layer: int, q_THD: torch.Tensor) -> torch.Tensor:
        """Causal attention of every row over its own sequence's context in the cache, this step's rows included.

        q may be a strided view with a contiguous last dimension. Returns [T, H, D] in q's dtype, valid until the next
        call. Scores are scaled by 1 / sqrt(D).
        """


class AttentionBackend(Protocol):
    """A kind of attention, chosen once at start."""

    @property
    def name(self) -> str:
        """For reports and for choosing it by name."""

    @property
    def block_size_multiple(self) -> int:
        """It takes block sizes that are multiples of this."""

    @property
    def default_block_size(self) -> int:
        """The block size it does best with."""

    @property
    def recomputes_exactly(self) -> bool:
        """Whether a row of a prompt comes to the same bits as when it decodes, whatever is computed beside it."""

    def begin(self, batch: Batch, kv: KVCache) -> AttentionStep:
        """Prepares one step: works out what all layers share."""


def block_size_of(backend: AttentionBackend, wanted: int | None) -> int:
    """The block size that is wanted, or the backend's own. Raises ValueError for one that it does not take."""
    block_size = backend.default_block_size if wanted is None else wanted
    if block_size % backend.block_size_multiple:
        raise ValueError(
            f"block_size is {block_size}; attention backend {backend.name} takes multiples of "
            f"{backend.block_size_multiple}"
        )
    return block_size
