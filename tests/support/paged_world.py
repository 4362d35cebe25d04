"""Sequences with known keys and values, scattered over a paged cache in which everything else is NaN."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache


@dataclass(frozen=True)
class Heads:
    """A model's attention."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.head_dim)


@dataclass(eq=False)
class PagedWorld:
    """Sequences given as (rows of this step, length of context); a context of 0 is an empty row."""

    heads: Heads
    block_size: int
    sequences: list[tuple[int, int]]
    dtype: torch.dtype = torch.float32
    seed: int = 0
    spare_columns: int = 1
    """Table entries past the longest context."""
    context_seeds: list[int] = field(default_factory=list)
    """One per sequence, for sequences that must be the same in two worlds; else their index."""

    def __post_init__(self) -> None:
        h, P = self.heads, self.block_size
        generator = torch.Generator().manual_seed(self.seed)
        needed = [-(-context // P) for _, context in self.sequences]
        num_blocks = sum(needed) + 1
        self.kv_layer = torch.full((2, num_blocks, h.num_kv_heads, P, h.head_dim), float("nan"), dtype=self.dtype)
        # Block 0 stays NaN: tables are padded with it.
        order = (torch.randperm(num_blocks - 1, generator=generator) + 1).to(torch.int32)
        self.tables = torch.zeros(len(needed), max(needed) + self.spare_columns, dtype=torch.int32)
        self.contexts: list[torch.Tensor] = []
        q_rows, starts = [], [0]
        for index, ((rows, context), count) in enumerate(zip(self.sequences, needed, strict=True)):
            own = torch.Generator().manual_seed(1000 + (self.context_seeds[index] if self.context_seeds else index))
            blocks, order = order[:count], order[count:]
            self.tables[index, :count] = blocks
            kv = torch.randn(2, h.num_kv_heads, context, h.head_dim, generator=own).to(self.dtype)
            self.contexts.append(kv)
            padded = torch.full((2, h.num_kv_heads, count * P, h.head_dim), float("nan"), dtype=self.dtype)
            padded[:, :, :context] = kv
            self.kv_layer[:, blocks.long()] = padded.unflatten(2, (count, P)).transpose(1, 2)
            # As the decoder hands it over: a part of the fused projection's rows.
            width = (h.num_heads + 2 * h.num_kv_heads) * h.head_dim
            q_rows.append(torch.randn(rows, width, generator=own).to(self.dtype))
            starts.append(starts[-1] + rows)
        qkv = torch.cat(q_rows)
        self.q = qkv[:, : h.num_heads * h.head_dim].unflatten(1, (h.num_heads, h.head_dim))
        self.query_starts = torch.tensor(starts, dtype=torch.int32)
        self.context_lens = torch.tensor([context for _, context in self.sequences], dtype=torch.int32)

    @property
    def max_query_len(self) -> int:
        return max(rows for rows, _ in self.sequences)

    def empty_out(self) -> torch.Tensor:
        """[T, H, D] of NaN, contiguous."""
        return torch.full(self.q.shape, float("nan"), dtype=self.dtype)

    def expected(self) -> torch.Tensor:
        """By torch's own attention, a sequence at a time, over contiguous keys and values: [T, H, D] in fp32."""
        h = self.heads
        group = h.num_heads // h.num_kv_heads
        out = torch.zeros(self.q.shape)
        for (rows, context), start, (k, v) in zip(
            self.sequences, self.query_starts.tolist(), self.contexts, strict=False
        ):
            if context == 0:
                continue
            sees = torch.ones(rows, context, dtype=torch.bool).tril(context - rows)
            result = F.scaled_dot_product_attention(
                self.q[start : start + rows].float().transpose(0, 1),
                k.float().repeat_interleave(group, 0),
                v.float().repeat_interleave(group, 0),
                attn_mask=sees,
            )
            out[start : start + rows] = result.transpose(0, 1)
        return out

    def batch(self) -> tuple[Batch, KVCache]:
        """The step as the decoder hands it over: decodes are the leading sequences of one row, and the cache's second
        layer is this world's; its first is NaN."""
        h = self.heads
        config = attention_config(h, num_layers=2)
        kv = KVCache(config, self.kv_layer.shape[1], self.block_size, self.dtype)
        kv.layers[0].fill_(float("nan"))
        kv.layers[1].copy_(self.kv_layer)
        starts = self.query_starts.tolist()
        num_decodes = next((i for i, (rows, _) in enumerate(self.sequences) if rows != 1), len(self.sequences))
        nothing = torch.empty(0, dtype=torch.int64)
        batch = Batch(
            input_ids_T=torch.zeros(starts[-1], dtype=torch.int64),
            positions_T=torch.zeros(starts[-1], dtype=torch.int64),
            query_starts=self.query_starts,
            context_lens_B=self.context_lens,
            block_tables_BM=self.tables,
            write_rows_W=nothing,
            kv_positions_W=nothing,
            sample_rows_S=nothing,
            num_decodes=num_decodes,
            seq_rows=tuple(
                (start, rows, context) for start, (rows, context) in zip(starts, self.sequences, strict=False)
            ),
        )
        return batch, kv


def attention_config(heads: Heads, num_layers: int = 1) -> DecoderConfig:
    """A model with these heads."""
    return DecoderConfig(
        architecture="qwen3",
        hidden_size=64,
        intermediate_size=64,
        num_layers=num_layers,
        num_heads=heads.num_heads,
        num_kv_heads=heads.num_kv_heads,
        head_dim=heads.head_dim,
        vocab_size=64,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        qk_norm=True,
        qkv_bias=False,
    )
