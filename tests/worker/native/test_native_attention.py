"""Attention in place against attention written out, at every instruction set of this machine."""

import ctypes
import dataclasses
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.attention.paged_native import PagedNativeAttention
from pagewire.worker.native.library import AttentionPlan, NativeLibrary, load_library

# Rounding of the result, and of a prompt's weights, to bf16.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def shape(num_heads: int, num_kv_heads: int, head_dim: int) -> DecoderConfig:
    return DecoderConfig(
        architecture="qwen3",
        hidden_size=64,
        intermediate_size=64,
        num_layers=1,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=64,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        qk_norm=True,
        qkv_bias=False,
    )


@dataclass(eq=False)
class World:
    """Sequences (rows of this step, context) over shuffled blocks; everything else in the cache is NaN."""

    config: DecoderConfig
    block_size: int
    dtype: torch.dtype
    sequences: list[tuple[int, int]]

    def __post_init__(self) -> None:
        c, P = self.config, self.block_size
        generator = torch.Generator().manual_seed(0)
        needed = [-(-context // P) for _, context in self.sequences]
        self.kv = KVCache(c, sum(needed) + 1, P, self.dtype)
        self.kv.layers[0].fill_(float("nan"))
        order = torch.randperm(sum(needed), generator=generator).to(torch.int32) + 1
        tables = torch.zeros(len(needed), max(needed), dtype=torch.int32)
        self.keys, self.values, seq_rows, starts = [], [], [], [0]
        for index, ((rows, context), count) in enumerate(zip(self.sequences, needed, strict=True)):
            blocks, order = order[:count], order[count:]
            tables[index, :count] = blocks
            own = torch.Generator().manual_seed(index)
            kv = torch.randn(2, c.num_kv_heads, context, c.head_dim, generator=own).to(self.dtype)
            self.keys.append(kv[0])
            self.values.append(kv[1])
            padded = torch.full((2, c.num_kv_heads, count * P, c.head_dim), float("nan"), dtype=self.dtype)
            padded[:, :, :context] = kv
            self.kv.layers[0][:, blocks.long()] = padded.unflatten(2, (count, P)).transpose(1, 2)
            seq_rows.append((starts[-1], rows, context))
            starts.append(starts[-1] + rows)
        num_rows = starts[-1]
        # As the decoder hands it over: a part of the fused projection's rows.
        width = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
        qkv = torch.randn(num_rows, width, generator=generator).to(self.dtype)
        self.q_THD = qkv[:, : c.num_heads * c.head_dim].unflatten(1, (c.num_heads, c.head_dim))
        nothing = torch.empty(0, dtype=torch.int64)
        self.batch = Batch(
            input_ids_T=torch.zeros(num_rows, dtype=torch.int64),
            positions_T=torch.zeros(num_rows, dtype=torch.int64),
            query_starts=torch.tensor(starts, dtype=torch.int32),
            context_lens_B=torch.tensor([context for _, context in self.sequences], dtype=torch.int32),
            block_tables_BM=tables,
            write_rows_W=nothing,
            kv_positions_W=nothing,
            sample_rows_S=nothing,
            num_decodes=0,
            seq_rows=tuple(seq_rows),
        )

    def expected(self) -> torch.Tensor:
        """In float64, a sequence at a time."""
        c = self.config
        out = torch.empty(self.q_THD.shape, dtype=torch.float64)
        group = c.num_heads // c.num_kv_heads
        for (start, rows, context), k, v in zip(self.batch.seq_rows, self.keys, self.values, strict=True):
            k = k.double().repeat_interleave(group, 0)
            v = v.double().repeat_interleave(group, 0)
            hidden = torch.ones(rows, context, dtype=torch.bool).triu(context - rows + 1)
            scores = torch.einsum("rhd,htd->rht", self.q_THD[start : start + rows].double(), k) / c.head_dim**0.5
            weights = scores.masked_fill(hidden[:, None], float("-inf")).softmax(2)
            out[start : start + rows] = torch.einsum("rht,htd->rhd", weights, v)
        return out

    def by_rows(self) -> Batch:
        """The same rows as sequences that decode, each of which ends with its row."""
        starts, contexts_B = self.batch.query_starts, self.batch.context_lens_B
        seqs_T = torch.repeat_interleave(torch.diff(starts).to(torch.int64))
        contexts_T = torch.arange(1, len(seqs_T) + 1, dtype=torch.int32) + (contexts_B - starts[1:])[seqs_T]
        return dataclasses.replace(
            self.batch,
            query_starts=torch.arange(len(seqs_T) + 1, dtype=torch.int32),
            context_lens_B=contexts_T,
            block_tables_BM=self.batch.block_tables_BM[seqs_T],
        )

    def computed(self, library: NativeLibrary, batch: Batch | None = None) -> torch.Tensor:
        step = PagedNativeAttention(library, self.config, self.dtype).begin(batch or self.batch, self.kv)
        step.attend(0, self.q_THD)
        return step.attend(0, self.q_THD)  # twice: scratch memory is left as it was found


@cache
def mixed_world(heads: tuple[int, int, int], block_size: int, dtype: torch.dtype) -> tuple[World, torch.Tensor]:
    """Decoding sequences and chunks whose lengths lie at the borders of blocks, chunks and tiles; what is expected."""
    decodes = [(1, 1), (1, block_size), (1, block_size + 1), (1, 255), (1, 256), (1, 257), (1, 700)]
    chunks = [(2, 2), (block_size, block_size), (3, block_size + 3), (65, 65), (33, 100), (7, 300)]
    world = World(shape(*heads), block_size, dtype, decodes + chunks)
    return world, world.expected()


def check(world: World, library: NativeLibrary, expected: torch.Tensor) -> None:
    out = world.computed(library)
    assert out.dtype == world.dtype
    torch.testing.assert_close(out.double(), expected, rtol=TOLERANCE[world.dtype], atol=TOLERANCE[world.dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("heads", "block_size"),
    [
        *(((9, 3, 64), size) for size in (1, 16, 32, 256)),
        *((heads, 16) for heads in ((16, 8, 128), (5, 1, 80), (4, 4, 96), (14, 2, 16), (6, 1, 256))),
    ],
    ids=str,
)
def test_decode_and_prompts_in_one_step(
    library: NativeLibrary, heads: tuple[int, int, int], block_size: int, dtype: torch.dtype
) -> None:
    world, expected = mixed_world(heads, block_size, dtype)
    check(world, library, expected)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "heads", [(9, 3, 64), (16, 8, 128), (5, 1, 80), (4, 4, 96), (14, 2, 16), (6, 1, 256), (70, 1, 32)], ids=str
)
def test_a_row_of_a_prompt_is_what_it_is_when_it_decodes(
    library: NativeLibrary, heads: tuple[int, int, int], dtype: torch.dtype
) -> None:
    chunks = [(2, 2), (64, 65), (65, 65), (33, 100), (7, 300), (300, 300), (20, 513), (3, 258)]
    world = World(shape(*heads), 16, dtype, chunks)
    assert torch.equal(world.computed(library).clone(), world.computed(library, world.by_rows()))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_more_query_heads_than_a_tile(library: NativeLibrary, dtype: torch.dtype) -> None:
    world = World(shape(70, 1, 32), 16, dtype, [(1, 40), (5, 40)])
    check(world, library, world.expected())


def test_a_result_depends_on_neither_company_nor_threads() -> None:
    config = shape(16, 8, 64)
    together = World(config, 16, torch.bfloat16, [(1, 900), (1, 30), (40, 90)])
    with_two = together.computed(load_library(2)).clone()
    alone = World(config, 16, torch.bfloat16, [(1, 900)])
    alone.q_THD = together.q_THD[:1]
    with_one = alone.computed(load_library(1)).clone()
    load_library(torch.get_num_threads())
    assert torch.equal(with_two[:1], with_one)


def test_scores_far_apart_do_not_overflow(library: NativeLibrary) -> None:
    world = World(shape(2, 1, 64), 16, torch.float32, [(1, 300), (20, 300)])
    world.q_THD.mul_(1000)
    check(world, library, world.expected())


def test_items_cover_every_row_and_chunk_once() -> None:
    library = load_library(torch.get_num_threads())
    world = World(shape(6, 2, 16), 16, torch.float32, [(1, 1), (1, 600), (50, 80), (1, 256)])
    items = np.zeros((400, 5), np.int32)
    plan = AttentionPlan(items=items.ctypes.data)
    library.plan_attention(
        world.batch.query_starts.data_ptr(), world.batch.context_lens_B.data_ptr(), 4, 3, ctypes.byref(plan)
    )
    count = plan.num_items
    prefill = sorted((first, first + rows) for seq, is_prefill, first, rows, _ in items[:count].tolist() if is_prefill)
    assert prefill[0][0] == 0
    assert prefill[-1][1] == 50
    assert all(end == start for (_, end), (start, _) in pairwise(prefill))
    decode = [(seq, first, chunks) for seq, is_prefill, first, chunks, _ in items[:count].tolist() if not is_prefill]
    assert decode == [(0, 0, 1), (1, 0, 3), (1, 1, 3), (1, 2, 3), (3, 0, 1)]
    assert plan.num_partials == 3
    assert plan.tokens_read == 1 + 600 + 50 * 80 + 256
