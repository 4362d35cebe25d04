"""Attention of decoding rows over paged KV in Triton: flash decoding, the combining step in the same launch.

Signature, shapes and results as in `pagewire.worker.kernels.reference.paged_decode`, the definition; so are the splits.

    program (KV head, row, part of n): for its share of the row's splits, which lie side by side, in one loop:
        scores of the G query heads of the KV head, one tile of tokens at a time → a partial result per split
    the last of a row's programs to arrive combines the partial results, in the order of splits

The query heads of a KV head share one tile, so each key and value is read once. How a context is split follows from its
length alone, and each split is computed from scratch whichever program takes it: so n, which follows from the batch
size, decides only how the work is spread, and a row's result depends on nothing but the row. Nothing is launched
according to a value on the device: a graph made for B rows serves any contexts, and programs without a split end at
once. They are last in the launch order, when the others are under way.

Floor: context · 4 · D bytes per KV head and row in bf16 over the memory's bandwidth. Qwen3-0.6B (8 KV heads of 128),
256 rows at 1k context: 1.07 GB a layer, 0.25 ms at 4.3 TB/s. A split of 128 tokens is 64 KB of reads; 33 KB in flight
per multiprocessor cover a microsecond's latency at that bandwidth, and four programs with 32 KB each are resident. Each
has a few microseconds in which it reads nothing: it begins, waits for its first tile, arrives, combines. So tiles of
the next split are requested while one ends.

Source: Flash-Decoding (pytorch.org/blog/flash-decoding); the arrival counter is that of split-K matrix products.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from pagewire.worker.kernels.triton.attention_tile import (
    LOG2_E,
    attend_tile,
    load_blocks,
    load_kv_tile,
    shared_bytes,
    upcasts,
)
from pagewire.worker.kernels.triton.overlap import begin_overlapped, launch_options
from pagewire.worker.kernels.workspaces import MAX_SPLITS, SPLIT_TOKENS, DecodeWorkspace

_PROGRAMS_PER_SM = 16
"""Programs that a launch aims at, for rows of different lengths even out over several waves of four."""

_LONG_ROW = 8
_LEAST_TOKENS = 512
"""A row of a full batch has few programs; one whose context is long has up to _LONG_ROW, of _LEAST_TOKENS or more each.
The others' end at once. On an H200, 255 contexts of 1,024 and one of 32,768 (floor 282 µs): 679 µs with 2, 404 with 8,
361 with 16; 256 of 1,024: 277, 279, 296."""

_COMBINED_VALUES = 4096
"""Partial values that the combining step holds at once: 64 registers of each of 64 threads."""


@dataclass(frozen=True, slots=True)
class DecodeTile:
    """How a program cuts a split."""

    tokens: int
    num_warps: int
    num_stages: int


def decode_tile(head_dim: int, itemsize: int, shared: int) -> DecodeTile:
    """Tokens per tile and how many tiles are on their way.

    With three stages two tiles are requested before the first product. 32 tokens of 128 dimensions in bf16 are 16 KB
    with their values; with two of them, the queries and what storing a result needs, a program takes 44 KB, so that
    four or five are resident on Hopper. Tiles of 64 tokens took 76 KB, for two. Wider rows take fewer tokens for the
    same bytes. The product has 16 rows, and each warp takes a part of the tokens. Devices with the 99 KB of consumer
    cards take two stages, for three programs.

    On an H200, Qwen3-0.6B's heads, µs for one context of 1,024, 16, 256, and 256 of 64 to 1,984 (floors 1, 16, 252,
    252): two warps 8.5, 24.3, 278, 279; four 11.0, 26.3, 278, 289; two with four stages 8.0, 26.9, 276, 282; tiles of
    64 tokens, two warps 7.2, 30.8, 282, 295.
    """
    row_bytes = max(64, triton.next_power_of_2(head_dim)) * itemsize
    tokens = min(64, max(16, (8 << 10) // row_bytes))
    return DecodeTile(tokens, num_warps=2, num_stages=3 if shared >= 160 << 10 else 2)


def programs_per_row(num_pairs: int, max_splits: int, num_sms: int) -> int:
    """Programs for each of num_pairs (row, KV head): a power of two, so that few distinct graphs' shapes differ."""
    wanted = triton.cdiv(_PROGRAMS_PER_SM * num_sms, num_pairs)
    return min(max_splits, int(triton.next_power_of_2(wanted)))


def programs_of_long_rows(num_programs: int, max_splits: int) -> int:
    """Programs that a row may have where its context is much longer than the batch's: the host does not know which."""
    return min(max_splits, max(num_programs, _LONG_ROW))


def paged_decode(
    q_BHD: torch.Tensor,
    kv_layer: torch.Tensor,
    block_tables_BM: torch.Tensor,
    context_lens_B: torch.Tensor,
    out_BHD: torch.Tensor,
    *,
    scale: float,
    workspace: DecodeWorkspace,
    overlap: bool = False,
) -> None:
    """See `pagewire.worker.kernels.reference.paged_decode.paged_decode`. `overlap`: see
    `pagewire.worker.kernels.triton.overlap`."""
    B, H, D = q_BHD.shape
    _, _, K, P, _ = kv_layer.shape
    workspace.check(B)
    if B == 0:
        return
    G, max_splits = H // K, workspace.max_splits
    padded_d, padded_g = triton.next_power_of_2(D), triton.next_power_of_2(G)
    tile = decode_tile(D, q_BHD.element_size(), shared_bytes(q_BHD.device))
    num_programs = programs_per_row(B * K, max_splits, workspace.num_sms)
    grid = (K, B, programs_of_long_rows(num_programs, max_splits))
    _paged_decode_kernel[grid](
        q_BHD,
        kv_layer,
        block_tables_BM,
        context_lens_B,
        out_BHD,
        workspace.partial_out,
        workspace.partial_lse,
        workspace.arrivals,
        q_BHD.stride(0),
        kv_layer.stride(0),
        block_tables_BM.stride(0),
        scale * LOG2_E,
        num_programs,
        K=K,
        G=G,
        P=P,
        D=D,
        PADDED_D=padded_d,
        PADDED_G=padded_g,
        ROWS=max(16, padded_g),
        TILE=tile.tokens,
        LEAST_TOKENS=_LEAST_TOKENS,
        SPLIT_TOKENS=SPLIT_TOKENS,
        MAX_SPLITS=MAX_SPLITS,
        SPLITS=max_splits,
        PADDED_SPLITS=triton.next_power_of_2(max_splits),
        SPLITS_AT_ONCE=max(1, min(triton.next_power_of_2(max_splits), _COMBINED_VALUES // (padded_g * padded_d))),
        UPCAST=upcasts(),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **launch_options(overlap),
    )


@triton.jit(do_not_specialize=["num_programs"])
def _paged_decode_kernel(
    q,
    kv,
    tables,
    context_lens,
    out,
    partial_out,
    partial_lse,
    arrivals,
    q_stride,
    value_offset,
    table_stride,
    qk_scale,
    num_programs,
    K: tl.constexpr,
    G: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    PADDED_G: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    LEAST_TOKENS: tl.constexpr,
    SPLIT_TOKENS: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    SPLITS: tl.constexpr,
    PADDED_SPLITS: tl.constexpr,
    SPLITS_AT_ONCE: tl.constexpr,
    UPCAST: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    begin_overlapped(OVERLAP)
    kv_head, row, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_parts = tl.num_programs(2)
    context_len = tl.load(context_lens + row)
    split_tokens = SPLIT_TOKENS * tl.maximum(1, tl.cdiv(context_len, SPLIT_TOKENS * MAX_SPLITS))
    num_splits = tl.cdiv(context_len, split_tokens)
    groups, dims = tl.arange(0, ROWS), tl.arange(0, PADDED_D)
    is_value = (groups < G)[:, None] & (dims < D)[None, :]
    out += (row * K + kv_head) * (G * D)
    if context_len == 0:
        if part == 0:
            nothing = tl.zeros([ROWS, PADDED_D], tl.float32).to(out.dtype.element_ty)
            tl.store(out + groups[:, None] * D + dims[None, :], nothing, mask=is_value)
        return
    least = tl.minimum(tl.cdiv(num_splits, num_programs), tl.cdiv(LEAST_TOKENS, split_tokens))
    splits_per_part = tl.maximum(tl.cdiv(num_splits, num_parts), least)
    split = part * splits_per_part
    if split >= num_splits:
        return

    table = tables + row * table_stride
    partial = (row.to(tl.int64) * K + kv_head) * SPLITS
    q += row * q_stride + kv_head * (G * D)
    q_tile = tl.load(q + groups[:, None] * D + dims[None, :], mask=is_value, other=0.0)
    start = split * split_tokens
    end = tl.minimum(start + splits_per_part * split_tokens, context_len)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, PADDED_D], tl.float32)
    next_blocks = load_blocks(table, start, end, P, TILE)
    # One loop over the tiles of all its splits, so that a split's tiles are on their way while the one before it ends.
    for first_token in range(start, end, TILE):
        blocks, next_blocks = next_blocks, load_blocks(table, first_token + TILE, end, P, TILE)
        k, v = load_kv_tile(kv, blocks, value_offset, kv_head, first_token, end, K, P, D, PADDED_D, TILE, MASKED=True)
        is_seen = (first_token + tl.arange(0, TILE) < end)[None, :]
        top, total, acc = attend_tile(q_tile, k, v, is_seen, qk_scale, top, total, acc, True, UPCAST)
        if first_token + TILE >= tl.minimum((split + 1) * split_tokens, end):
            result = acc / total[:, None]
            if num_splits == 1:
                tl.store(out + groups[:, None] * D + dims[None, :], result.to(out.dtype.element_ty), mask=is_value)
            else:
                rows = (partial + split) * G + groups
                tl.store(partial_out + rows[:, None] * D + dims[None, :], result, mask=is_value)
                tl.store(partial_lse + rows, top + tl.log2(total), mask=groups < G)
            # The next split begins anew: of what was summed, exp2(-infinity) is left.
            top = tl.full([ROWS], float("-inf"), tl.float32)
            split += 1

    if num_splits > 1:
        # All threads' partial results before this program's arrival; every program's arrival before the last one reads.
        tl.debug_barrier()
        arrival = arrivals + row * K + kv_head
        num_arrived = tl.atomic_add(arrival, 1, sem="acq_rel")
        if num_arrived == tl.cdiv(num_splits, splits_per_part) - 1:
            tl.store(arrival, 0)
            _combine(
                out,
                partial_out + partial * (G * D),
                partial_lse + partial * G,
                num_splits,
                G,
                D,
                PADDED_G,
                PADDED_D,
                PADDED_SPLITS,
                SPLITS_AT_ONCE,
            )


@triton.jit
def _combine(
    out,
    partial_out,
    partial_lse,
    num_splits,
    G: tl.constexpr,
    D: tl.constexpr,
    PADDED_G: tl.constexpr,
    PADDED_D: tl.constexpr,
    PADDED_SPLITS: tl.constexpr,
    SPLITS_AT_ONCE: tl.constexpr,
):
    """Sums the partial results of one row and KV head, each weighted by its share of the weights' sum.

    Read past the first-level cache, which other programs' stores do not reach. Loads of all splits are independent, so
    that they wait together.
    """
    groups, dims = tl.arange(0, PADDED_G), tl.arange(0, PADDED_D)
    splits = tl.arange(0, PADDED_SPLITS)[:, None]
    is_lse = (splits < num_splits) & (groups < G)[None, :]
    lse = tl.load(partial_lse + splits * G + groups[None, :], mask=is_lse, other=float("-inf"), cache_modifier=".cg")
    lse = tl.where((groups < G)[None, :], lse, 0.0)
    top = tl.max(lse, 0)
    total = tl.sum(tl.exp2(lse - top[None, :]), 0)
    acc = tl.zeros([PADDED_G, PADDED_D], tl.float32)
    for first in range(0, num_splits, SPLITS_AT_ONCE):
        some = first + tl.arange(0, SPLITS_AT_ONCE)
        rows = some[:, None] * G + groups[None, :]
        exists = (some < num_splits)[:, None] & (groups < G)[None, :]
        some_lse = tl.load(partial_lse + rows, mask=exists, other=float("-inf"), cache_modifier=".cg")
        share = tl.exp2(some_lse - top[None, :]) / total[None, :]
        values = tl.load(
            partial_out + rows[:, :, None] * D + dims[None, None, :],
            mask=exists[:, :, None] & (dims < D)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        acc += tl.sum(share[:, :, None] * values, 0)
    is_value = (groups < G)[:, None] & (dims < D)[None, :]
    tl.store(out + groups[:, None] * D + dims[None, :], acc.to(out.dtype.element_ty), mask=is_value)
