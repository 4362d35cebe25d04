"""Paged attention by our own kernels, on any CUDA device of compute capability 8.0 or more.

Rows of sequences that decode go to one kernel, prompts' to the other. With the kernels' definitions in place of
Triton's the same class runs on a CPU.
"""

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.kernels.reference.paged_decode import DecodeWorkspace

NAME = "triton"


class PagedDecode(Protocol):
    """See `pagewire.worker.kernels.reference.paged_decode.paged_decode`."""

    def __call__(
        self,
        q_BHD: torch.Tensor,
        kv_layer: torch.Tensor,
        block_tables_BM: torch.Tensor,
        context_lens_B: torch.Tensor,
        out_BHD: torch.Tensor,
        *,
        scale: float,
        workspace: DecodeWorkspace,
    ) -> None: ...


class PagedPrefill(Protocol):
    """See `pagewire.worker.kernels.reference.paged_prefill.paged_prefill`."""

    def __call__(
        self,
        q_THD: torch.Tensor,
        kv_layer: torch.Tensor,
        block_tables_BM: torch.Tensor,
        query_starts: torch.Tensor,
        context_lens_B: torch.Tensor,
        out_THD: torch.Tensor,
        *,
        scale: float,
        max_query_len: int,
    ) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedKernels:
    """One kind of kernels."""

    name: str
    decode: PagedDecode
    prefill: PagedPrefill


def torch_paged_kernels() -> PagedKernels:
    """The definitions, on any device."""
    from pagewire.worker.kernels.reference.paged_decode import paged_decode
    from pagewire.worker.kernels.reference.paged_prefill import paged_prefill

    return PagedKernels(name="torch-kernels", decode=paged_decode, prefill=paged_prefill)


def triton_paged_kernels(*, overlap: bool) -> PagedKernels:
    """`overlap`: the decode kernel's programs start before the kernel before it is over, which devices can from sm_90
    on. Raises ImportError where Triton is not installed."""
    from pagewire.worker.kernels.triton.paged_decode import paged_decode
    from pagewire.worker.kernels.triton.paged_prefill import paged_prefill

    return PagedKernels(name=NAME, decode=partial(paged_decode, overlap=overlap), prefill=paged_prefill)


class TritonAttention:
    """An `AttentionBackend` that owns the decode kernel's workspace: one step at a time."""

    block_size_multiple = 1
    default_block_size = 64
    """A kernel's tile of tokens is then one block or half of one: one table entry to look up, and 16 KB of neighbouring
    keys in a block at 128 dimensions in bf16. Smaller blocks look up an entry per token; larger ones read no faster and
    waste more of the last block."""

    def __init__(
        self,
        config: DecoderConfig,
        kernels: PagedKernels,
        device: torch.device,
        *,
        max_num_seqs: int,
        max_model_len: int,
        num_sms: int,
    ) -> None:
        """config has this rank's numbers of heads; num_sms are the device's multiprocessors."""
        self.name = kernels.name
        self._kernels = kernels
        self._workspace = DecodeWorkspace.allocate(
            max_rows=max_num_seqs,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_context=max_model_len,
            num_sms=num_sms,
            device=device,
        )
        self._row_shape = (config.num_heads, config.head_dim)

    def begin(self, batch: Batch, kv: KVCache) -> "TritonAttentionStep":
        out_THD = torch.empty(
            (batch.input_ids_T.shape[0], *self._row_shape), dtype=kv.dtype, device=batch.input_ids_T.device
        )
        return TritonAttentionStep(self._kernels, self._workspace, batch, kv, out_THD)


class TritonAttentionStep:
    """One step's `AttentionStep`."""

    def __init__(
        self, kernels: PagedKernels, workspace: DecodeWorkspace, batch: Batch, kv: KVCache, out_THD: torch.Tensor
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
            self._kernels.decode(
                q_THD[: self._num_decodes],
                kv_layer,
                self._decode_tables_BM,
                self._decode_lens_B,
                self._out_THD[: self._num_decodes],
                scale=scale,
                workspace=self._workspace,
            )
        if self._max_query_len:
            self._kernels.prefill(
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
