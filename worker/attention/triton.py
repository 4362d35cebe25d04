"""Paged attention by our own kernels, on any CUDA device of compute capability 8.0 or more.

Rows of sequences that decode go to one kernel, prompts' to the other. With the reference kernels in place of Triton's
the same class runs on a CPU.
"""

import torch

from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.kernels.workspaces import DecodeWorkspace


class TritonAttention:
    """An `AttentionBackend` that owns the decode kernel's workspace: one step at a time."""

    name = "triton"
    block_size_multiple = 1
    default_block_size = 64
    """A kernel's tile of tokens is then one block or half of one: one table entry to look up, and 16 KB of neighbouring
    keys in a block at 128 dimensions in bf16. Smaller blocks look up an entry per token; larger ones read no faster and
    waste more of the last block."""

    def __init__(
        self,
        config: DecoderConfig,
        kernels: Kernels,
        device: torch.device,
        *,
        max_num_seqs: int,
        max_model_len: int,
        num_sms: int,
    ) -> None:
        """config has this rank's numbers of heads; num_sms are the device's multiprocessors."""
        self._kernels = kernels
        self._workspace = DecodeWorkspace.allocate(
            max_rows=max_num_seqs,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_context=max_model_len,
            num_sms=num_sms,
            device=device,
            partitions=kernels.is_exact,
        )
        self.recomputes_exactly = kernels.is_exact
        self._row_shape = (config.num_heads, config.head_dim)

    def begin(self, batch: Batch, kv: KVCache) -> "TritonAttentionStep":
        out_THD = torch.empty(
            (batch.input_ids_T.shape[0], *self._row_shape), dtype=kv.dtype, device=batch.input_ids_T.device
        )
        return TritonAttentionStep(self._kernels, self._workspace, batch, kv, out_THD)


class TritonAttentionStep:
    """One step's `AttentionStep`."""

    def __init__(
        self, kernels: Kernels, workspace: DecodeWorkspace, batch: Batch, kv: KVCache, out_THD: torch.Tensor
    ) -> None:
        num_decodes = batch.num_decodes
        self._kernels = kernels
        self._workspace = workspace
        self._layers = kv.layers
        self._num_decodes = num_decodes
        self._decode_tables_BM = batch.block_tables_BM[:num_decodes]
        self._decode_lens_B = batch.context_lens_B[:num_decodes]
        self._prefill_tables_BM = batch.block_tables_BM[num_decodes:]
        self._prefill_starts = batch.query_starts[num_decodes:]
        self._prefill_lens_B = batch.context_lens_B[num_decodes:]
        self._max_query_len = max((rows for _, rows, _ in batch.seq_rows[num_decodes:]), default=0)
        self._out_THD = out_THD

    def attend(self, layer: int, q_THD: torch.Tensor) -> torch.Tensor:
        kv_layer, scale = self._layers[layer], float(q_THD.shape[2] ** -0.5)
        if self._num_decodes:
            self._kernels.paged_decode(
                q_THD[: self._num_decodes],
                kv_layer,
                self._decode_tables_BM,
                self._decode_lens_B,
                self._out_THD[: self._num_decodes],
                scale=scale,
                workspace=self._workspace,
            )
        if self._max_query_len:
            self._kernels.paged_prefill(
                q_THD,
                kv_layer,
                self._prefill_tables_BM,
                self._prefill_starts,
                self._prefill_lens_B,
                self._out_THD,
                scale=scale,
                max_query_len=self._max_query_len,
            )
        return self._out_THD
