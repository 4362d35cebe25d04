"""Paged attention by the FlashAttention packages, as far as they are installed: 3 for Hopper, 2 from compute capability
8.0.

Both take keys and values as [blocks, positions, KV heads, head dim] with any strides but the last, so a view of a layer
serves them; lengths and tables are int32 as they are. Causal attention is aligned to the last row of a context, as
ours. Each allocates its own results, which a graph's memory pool holds as any other tensor's.

Rows of sequences that decode and rows of prompts go to a call each, because a call's tiles are as tall as its longest
sequence. Unlike our own kernels, both choose splits of a context by what else is in the batch, so the last bits of a
result depend on its company.

What is used of the packages is said by two protocols, with the arguments as documented, by name. Sources:
hopper/flash_attn_interface.py, flash_attn/flash_attn_interface.py and the files flash_api.cpp of each in
Dao-AILab/flash-attention.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache

MAX_SPLITS = 32
"""Of a context, for FlashAttention 3. The library allocates fp32 results for as many splits as it may make, and makes
as many as the lengths on the device call for: without a cap, up to 128 for a graph whose table is long."""

_ROWS_PER_TILE = 128
"""Of FlashAttention 3's tiles at 128 dimensions."""


class FlashAttention3Module(Protocol):
    """What is used of `flash_attn_interface`."""

    def flash_attn_with_kvcache(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        *,
        cache_seqlens: torch.Tensor,
        page_table: torch.Tensor,
        cu_seqlens_q: torch.Tensor | None,
        max_seqlen_q: int,
        softmax_scale: float,
        causal: bool,
        scheduler_metadata: torch.Tensor,
        num_splits: int,
    ) -> torch.Tensor:
        """q [B, 1, H, D] or, with cu_seqlens_q, [T, H, D]; returns the like."""

    def get_scheduler_metadata(
        self,
        *,
        batch_size: int,
        max_seqlen_q: int,
        max_seqlen_k: int,
        num_heads_q: int,
        num_heads_kv: int,
        headdim: int,
        cache_seqlens: torch.Tensor,
        qkv_dtype: torch.dtype,
        cu_seqlens_q: torch.Tensor | None,
        page_size: int,
        causal: bool,
        num_splits: int,
    ) -> torch.Tensor:
        """How a call with the same arguments is cut into tiles, worked out by the device: int32."""


class FlashAttention2Module(Protocol):
    """What is used of `flash_attn`."""

    def flash_attn_varlen_func(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        softmax_scale: float,
        causal: bool,
        block_table: torch.Tensor,
    ) -> torch.Tensor:
        """q [T, H, D]; returns the like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Rows of a step that go into one call, and the tensors that the call takes."""

    first_row: int
    end_row: int
    max_query_len: int
    query_starts: torch.Tensor
    """int32 [B + 1], counted from first_row."""
    context_lens: torch.Tensor
    block_tables: torch.Tensor

    @property
    def num_seqs(self) -> int:
        return self.context_lens.shape[0]


def _parts(batch: Batch) -> list[_Part]:
    """The rows that decode, and the others, as far as there are any."""
    n, num_seqs = batch.num_decodes, len(batch.seq_rows)
    parts = []
    if n:
        parts.append(
            _Part(
                first_row=0,
                end_row=n,
                max_query_len=1,
                query_starts=batch.query_starts[: n + 1],
                context_lens=batch.context_lens_B[:n],
                block_tables=batch.block_tables_BM[:n],
            )
        )
    if n < num_seqs:
        parts.append(
            _Part(
                first_row=n,
                end_row=batch.input_ids_T.shape[0],
                max_query_len=max(rows for _, rows, _ in batch.seq_rows[n:]),
                query_starts=batch.query_starts[n:] - n,
                context_lens=batch.context_lens_B[n:],
                block_tables=batch.block_tables_BM[n:],
            )
        )
    return parts


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class FlashAttention3:
    """An `AttentionBackend` over `flash_attn_interface`."""

    name = "flash-attention-3"
    block_size_multiple = 1
    default_block_size = 128
    recomputes_exactly = False
    """Tiles of keys come by TMA where a block is a multiple of them: 128 tokens at 128 dimensions. Other sizes are
    gathered address by address."""

    def __init__(self, module: FlashAttention3Module, config: DecoderConfig, *, num_sms: int) -> None:
        """config has this rank's numbers of heads; num_sms are the device's multiprocessors."""
        self._module = module
        self._config = config
        self._num_sms = num_sms

    def begin(self, batch: Batch, kv: KVCache) -> "FlashAttention3Step":
        calls = []
        for part in _parts(batch):
            num_splits = self._num_splits(part)
            metadata = self._module.get_scheduler_metadata(
                batch_size=part.num_seqs,
                max_seqlen_q=part.max_query_len,
                max_seqlen_k=part.block_tables.shape[1] * kv.block_size,
                num_heads_q=self._config.num_heads,
                num_heads_kv=self._config.num_kv_heads,
                headdim=self._config.head_dim,
                cache_seqlens=part.context_lens,
                qkv_dtype=kv.dtype,
                cu_seqlens_q=None if part.max_query_len == 1 else part.query_starts,
                page_size=kv.block_size,
                causal=True,
                num_splits=num_splits,
            )
            calls.append(_Flash3Call(part, metadata, num_splits))
        return FlashAttention3Step(self._module, kv, calls)

    def _num_splits(self, part: _Part) -> int:
        """Upper bound on splits of a context. All of them for one row each: the device uses what it needs. A prompt's
        are as many as occupy the device, which bounds the memory for their results whatever a chunk's size."""
        if part.max_query_len == 1:
            return MAX_SPLITS
        c = self._config
        num_rows = (part.end_row - part.first_row) * (c.num_heads // c.num_kv_heads)
        num_tiles = -(-num_rows // _ROWS_PER_TILE) * c.num_kv_heads
        return max(1, min(MAX_SPLITS, self._num_sms // num_tiles))


@dataclass(frozen=True, slots=True)
class _Flash3Call:
    part: _Part
    metadata: torch.Tensor
    num_splits: int


class FlashAttention3Step:
    """One step's `AttentionStep`."""

    def __init__(self, module: FlashAttention3Module, kv: KVCache, calls: list[_Flash3Call]) -> None:
        self._module = module
        self._kv = kv
        self._calls = calls

    def attend(self, layer: int, q_THD: torch.Tensor) -> torch.Tensor:
        k_NPKD, v_NPKD = self._kv.layers[layer].transpose(2, 3)
        return _joined([self._attend(call, q_THD, k_NPKD, v_NPKD) for call in self._calls])

    def _attend(
        self, call: _Flash3Call, q_THD: torch.Tensor, k_NPKD: torch.Tensor, v_NPKD: torch.Tensor
    ) -> torch.Tensor:
        part = call.part
        one_row_each = part.max_query_len == 1
        q_RHD = q_THD[part.first_row : part.end_row]
        out = self._module.flash_attn_with_kvcache(
            q_RHD.unsqueeze(1) if one_row_each else q_RHD,
            k_NPKD,
            v_NPKD,
            cache_seqlens=part.context_lens,
            page_table=part.block_tables,
            cu_seqlens_q=None if one_row_each else part.query_starts,
            max_seqlen_q=part.max_query_len,
            softmax_scale=float(q_THD.shape[2] ** -0.5),
            causal=True,
            scheduler_metadata=call.metadata,
            num_splits=call.num_splits,
        )
        return out.squeeze(1) if one_row_each else out


class FlashAttention2:
    """An `AttentionBackend` over `flash_attn` 2.8 or later.

    `flash_attn_varlen_func` serves rows that decode, too: the function made for them, `flash_attn_with_kvcache`, reads
    the longest length back in versions after 2.8.3, which no graph allows. With one row per sequence both split the
    context and pack the query heads of a KV head.
    """

    name = "flash-attention-2"
    block_size_multiple = 256
    default_block_size = 256
    recomputes_exactly = False

    def __init__(self, module: FlashAttention2Module) -> None:
        self._module = module

    def begin(self, batch: Batch, kv: KVCache) -> "FlashAttention2Step":
        calls = [(part, F.pad(torch.cumsum(part.context_lens, 0, dtype=torch.int32), (1, 0))) for part in _parts(batch)]
        return FlashAttention2Step(self._module, kv, calls)


class FlashAttention2Step:
    """One step's `AttentionStep`."""

    def __init__(self, module: FlashAttention2Module, kv: KVCache, calls: list[tuple[_Part, torch.Tensor]]) -> None:
        """Each part comes with the sums of its context lengths, int32 [B + 1]."""
        self._module = module
        self._kv = kv
        self._calls = calls

    def attend(self, layer: int, q_THD: torch.Tensor) -> torch.Tensor:
        k_NPKD, v_NPKD = self._kv.layers[layer].transpose(2, 3)
        return _joined(
            [
                self._module.flash_attn_varlen_func(
                    q_THD[part.first_row : part.end_row],
                    k_NPKD,
                    v_NPKD,
                    cu_seqlens_q=part.query_starts,
                    cu_seqlens_k=context_starts,
                    max_seqlen_q=part.max_query_len,
                    max_seqlen_k=part.block_tables.shape[1] * self._kv.block_size,
                    softmax_scale=float(q_THD.shape[2] ** -0.5),
                    causal=True,
                    block_table=part.block_tables,
                )
                for part, context_starts in self._calls
            ]
        )
