"""Attention in one order of sums for prompts and for rows that decode, in Triton: the bits of a row follow from its own
history, whatever is computed beside it and however long its chunk is.

Signatures, shapes and results as in `pagewire.worker.kernels.reference.paged_decode` and `paged_prefill`, the
definitions; both are one kernel here.

    context   ├───── partition ─────┼───── partition ─────┼── ··   PARTITION_TOKENS each, at absolute positions
              ├ tile ┼ tile ┼ ·· ───┼ tile ┼ ··
    row       ██████████████████████ ███████                       a row's own last position, the rest masked

    program (KV head, tile of queries, sequence) of prompts: all partitions that its rows see, one after the other
    program (KV head, part, sequence) of decodes: a share of the row's partitions; the last of a row's programs to
    arrive merges what was stored

A partition is summed from nothing, tile after tile, and merged into what came before it, in ascending order: in
registers or from memory, by the same function. A row that decodes lies in a tile like a prompt's, whose other rows are
idle: the products are the same instructions over the same shapes. What a row must not see has weight zero, and a tile
or partition that it does not see at all multiplies by one and adds zero. Nothing is contracted that is not written as
`fma`, so that no compiler's choice can differ between the two.

What that costs: a decoding row pays the arithmetic of a tile of 64 rows, and where batches are small its context is
spread over fewer programs than by `pagewire.worker.kernels.triton.paged_decode`.

Source: FlashAttention-2 (arXiv 2307.08691), algorithm 1; fixed split sizes are those of "Defeating Nondeterminism in
LLM Inference" (thinkingmachines.ai/blog).
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl

from pagewire.worker.kernels.triton.attention_tile import LOG2_E, load_blocks, load_kv_tile, shared_bytes, upcasts
from pagewire.worker.kernels.triton.overlap import begin_overlapped, launch_options
from pagewire.worker.kernels.triton.paged_prefill import PrefillTile
from pagewire.worker.kernels.triton.skinny_tile import none
from pagewire.worker.kernels.workspaces import PARTITION_TOKENS, DecodeWorkspace

_PROGRAMS_PER_SM = 4
"""That a launch of decodes aims at: two are resident."""
_STAGES_OF_DECODES = 2
_STAGES_OF_FEW = 4
"""What a partition's result is stored through takes 32 KB of shared memory: with it and one tile under way, two
programs are resident on Hopper; where programs are few, each has three under way. No bit depends on it."""
_LONG_ROW = 8
"""Programs that a row of a full batch may have where its context is longer than the others': the host does not know
which. The others' end at once."""
_LEAST_PARTITIONS = 4
"""Of such a program, where there are as many."""
_MERGED_AHEAD = 4
"""Partitions that are asked for before the first of them is merged."""


def exact_tile(head_dim: int, itemsize: int, shared: int, *, decodes: bool) -> PrefillTile:
    """Rows and tokens of a tile. Both kinds have as many tokens, and 16 rows for each warp, so that a row's sums are
    taken in the same order; 64 rows, a warp group's, are the least that Hopper multiplies at once. With them a prompt
    of 8,192 tokens took an H200 791 µs a layer, as long as the second-level cache needs to give each tile its keys and
    values."""
    wide = triton.next_power_of_2(head_dim) > 128
    if itemsize > 2:
        return PrefillTile(rows=32, tokens=32, num_warps=8 if wide else 4, num_stages=1)
    if shared < 160 << 10:
        return PrefillTile(rows=64, tokens=32, num_warps=8 if wide else 4, num_stages=2)
    if wide:
        return PrefillTile(rows=64, tokens=32, num_warps=8, num_stages=2 if decodes else 3)
    if decodes:
        return PrefillTile(rows=64, tokens=64, num_warps=4, num_stages=_STAGES_OF_DECODES)
    return PrefillTile(rows=128, tokens=64, num_warps=8, num_stages=3)


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
    """See `pagewire.worker.kernels.reference.paged_decode.paged_decode`. The workspace is one of partitions. `overlap`:
    see `pagewire.worker.kernels.triton.overlap`."""
    B, K, slots = q_BHD.shape[0], kv_layer.shape[2], workspace.max_splits
    workspace.check(B)
    if B == 0:
        return
    wanted = triton.next_power_of_2(triton.cdiv(_PROGRAMS_PER_SM * workspace.num_sms, B * K))
    tile = exact_tile(q_BHD.shape[2], q_BHD.element_size(), shared_bytes(q_BHD.device), decodes=True)
    are_few = workspace.num_sms >= _PROGRAMS_PER_SM * B * K
    if are_few and tile.tokens == 64:
        tile = replace(tile, num_stages=_STAGES_OF_FEW)
    _launch(
        q_BHD,
        kv_layer,
        block_tables_BM,
        context_lens_B,
        context_lens_B,
        out_BHD,
        scale,
        num_programs=min(slots, wanted),
        grid=(K, min(slots, max(wanted, _LONG_ROW)), B),
        tile=tile,
        workspace=workspace,
        overlap=overlap,
    )


def paged_prefill(
    q_THD: torch.Tensor,
    kv_layer: torch.Tensor,
    block_tables_BM: torch.Tensor,
    query_starts: torch.Tensor,
    context_lens_B: torch.Tensor,
    out_THD: torch.Tensor,
    *,
    scale: float,
    max_query_len: int,
) -> None:
    """See `pagewire.worker.kernels.reference.paged_prefill.paged_prefill`."""
    num_seqs, K = context_lens_B.shape[0], kv_layer.shape[2]
    if num_seqs == 0 or max_query_len == 0:
        return
    G = q_THD.shape[1] // K
    tile = exact_tile(q_THD.shape[2], q_THD.element_size(), shared_bytes(q_THD.device), decodes=False)
    _launch(
        q_THD,
        kv_layer,
        block_tables_BM,
        query_starts,
        context_lens_B,
        out_THD,
        scale,
        num_programs=1,
        grid=(K, triton.cdiv(max_query_len, _rows(tile, G) // G), num_seqs),
        tile=tile,
        workspace=None,
        overlap=False,
    )


def _rows(tile: PrefillTile, group: int) -> int:
    return max(tile.rows, int(triton.next_power_of_2(group)))


def _launch(
    q: torch.Tensor,
    kv_layer: torch.Tensor,
    tables: torch.Tensor,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    out: torch.Tensor,
    scale: float,
    *,
    num_programs: int,
    grid: tuple[int, int, int],
    tile: PrefillTile,
    workspace: DecodeWorkspace | None,
    overlap: bool,
) -> None:
    """Of prompts, where there is no workspace."""
    _, H, D = q.shape
    _, _, K, P, _ = kv_layer.shape
    _paged_exact_kernel[grid](
        q,
        kv_layer,
        tables,
        query_starts,
        context_lens,
        out,
        None if workspace is None else workspace.partial_out,
        None if workspace is None else workspace.partial_lse,
        None if workspace is None else workspace.arrivals,
        q.stride(0),
        kv_layer.stride(0),
        tables.stride(0),
        scale * LOG2_E,
        num_programs,
        K=K,
        G=H // K,
        P=P,
        D=D,
        PADDED_D=triton.next_power_of_2(D),
        PADDED_G=triton.next_power_of_2(H // K),
        ROWS=_rows(tile, H // K),
        TILE=tile.tokens,
        PARTITION=PARTITION_TOKENS,
        SLOTS=1 if workspace is None else workspace.max_splits,
        LEAST=_LEAST_PARTITIONS,
        AHEAD=_MERGED_AHEAD,
        DECODES=workspace is not None,
        UPCAST=upcasts(),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=False,
        **launch_options(overlap),
    )


# Where the rows that decode end, prompts' begin at any word; a variant for each alignment would be compiled while
# serving.
@triton.jit(do_not_specialize=["tables", "query_starts", "context_lens", "num_programs"])
def _paged_exact_kernel(
    q,
    kv,
    tables,
    query_starts,
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
    PARTITION: tl.constexpr,
    SLOTS: tl.constexpr,
    LEAST: tl.constexpr,
    AHEAD: tl.constexpr,
    DECODES: tl.constexpr,
    UPCAST: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    begin_overlapped(OVERLAP)
    QUERIES: tl.constexpr = ROWS // G
    kv_head, seq = tl.program_id(0), tl.program_id(2)
    context_len = tl.load(context_lens + seq)
    if DECODES:
        first_query, first_row, num_queries = 0, seq, 1
    else:
        first_query = (tl.num_programs(1) - 1 - tl.program_id(1)) * QUERIES
        first_row = tl.load(query_starts + seq)
        num_queries = tl.load(query_starts + seq + 1) - first_row
        if first_query >= num_queries:
            return
    num_past = context_len - num_queries
    start = 0
    end = tl.maximum(0, num_past + tl.minimum(first_query + QUERIES, num_queries))
    num_partitions = tl.cdiv(end, PARTITION)
    num_parts = 1
    if DECODES:
        least = tl.minimum(tl.cdiv(num_partitions, num_programs), LEAST)
        share = tl.maximum(1, tl.maximum(tl.cdiv(num_partitions, tl.num_programs(1)), least))
        start = tl.program_id(1) * share * PARTITION
        if (start >= end) & (tl.program_id(1) > 0):
            return
        num_parts = tl.cdiv(num_partitions, share)
        end = tl.minimum(end, start + share * PARTITION)

    # Row r is query r // G of the tile, head r % G of the KV head's; those past QUERIES · G compute what nobody reads.
    rows, dims = tl.arange(0, ROWS), tl.arange(0, PADDED_D)
    query, head = first_query + rows // G, kv_head * G + rows % G
    is_value = ((rows < QUERIES * G) & (query < num_queries))[:, None] & (dims < D)[None, :]
    q += (first_row + query)[:, None].to(tl.int64) * q_stride + head[:, None] * D
    q_tile = tl.load(q + dims[None, :], mask=is_value, other=0.0)
    table = tables + seq * table_stride
    partial = (seq.to(tl.int64) * K + kv_head) * SLOTS * G

    # What all rows see needs no mask: to the tile in which the first of them ends.
    border = tl.minimum(tl.maximum(num_past + first_query + 1, 0) // TILE * TILE, end)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, PADDED_D], tl.float32)
    all_top = tl.full([ROWS], float("-inf"), tl.float32)
    all_weight = tl.zeros([ROWS], tl.float32)
    all_out = tl.zeros([ROWS, PADDED_D], tl.float32)
    next_blocks = load_blocks(table, start, end, P, TILE)
    for MASKED in tl.static_range(2):
        first, last = (border, end) if MASKED else (start, border)
        for first_token in range(first, last, TILE):
            blocks, next_blocks = next_blocks, load_blocks(table, first_token + TILE, end, P, TILE)
            k, v = load_kv_tile(kv, blocks, value_offset, kv_head, first_token, end, K, P, D, PADDED_D, TILE, MASKED)
            is_seen = (first_token + tl.arange(0, TILE))[None, :] <= (num_past + query)[:, None]
            top, total, acc = _attend(q_tile, k, v, is_seen, qk_scale, top, total, acc, MASKED, UPCAST)
            if ((first_token + TILE) % PARTITION == 0) | (first_token + TILE >= end):
                total = tl.where(total == 0.0, 1.0, total)  # of a row that saw nothing of the partition
                lse, result = top + tl.log2(total), acc / total[:, None]
                if DECODES:  # noqa: SIM102  the compiler skips what follows by the first, a constant, alone
                    if num_parts > 1:
                        stored = partial + first_token // PARTITION * G + rows
                        tl.store(partial_out + stored[:, None] * D + dims[None, :], result, mask=is_value)
                        tl.store(partial_lse + stored, lse, mask=rows < G)
                all_top, all_weight, all_out = _merge(all_top, all_weight, all_out, lse, result)
                top = tl.full([ROWS], float("-inf"), tl.float32)
                total = tl.zeros([ROWS], tl.float32)
                acc = tl.zeros([ROWS, PADDED_D], tl.float32)

    out += first_row.to(tl.int64) * (K * G * D)
    if num_parts <= 1:
        values = out + query[:, None].to(tl.int64) * (K * G * D) + head[:, None] * D + dims[None, :]
        tl.store(values, _divided(all_out, all_weight).to(out.dtype.element_ty), mask=is_value)
    elif DECODES:
        # All threads' partial results before this program's arrival; every program's arrival before the last one reads.
        tl.debug_barrier()
        arrival = arrivals + seq * K + kv_head
        num_arrived = tl.atomic_add(arrival, 1, sem="acq_rel")
        if num_arrived == num_parts - 1:
            tl.store(arrival, 0)
            _merge_stored(
                out + kv_head * (G * D),
                partial_out + partial * D,
                partial_lse + partial,
                num_partitions,
                G,
                D,
                PADDED_G,
                PADDED_D,
                AHEAD,
            )


@triton.jit
def _attend(q, k, v, is_seen, qk_scale, top, total, acc, MASKED: tl.constexpr, UPCAST: tl.constexpr):
    """Adds a tile to each row's running maximum `top`, in units of log2, sum of weights `total` and weighted sum of
    values `acc`; a row that sees nothing of it, and has seen nothing yet, stays as it is. A mask changes no bit of what
    is seen."""
    if UPCAST:
        q, k, v = q.to(tl.float32), k.to(tl.float32), v.to(tl.float32)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED:
        scores = tl.where(is_seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * qk_scale)
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp2(tl.fma(scores, qk_scale, -base[:, None]))
    shrink = tl.exp2(top - base)
    total = tl.fma(total, shrink, tl.sum(weights, 1))
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return new_top, total, acc


@triton.jit
def _merge(top, weight, out, lse, result):
    """Adds a partition's result, whose weights' sum has the base-2 logarithm `lse`, to those before it. One that a row
    saw nothing of, whose lse is minus infinity, changes no bit; the first must not be such."""
    new_top = tl.maximum(top, lse)
    old, new = tl.exp2(top - new_top), tl.exp2(lse - new_top)
    weight = tl.fma(weight, old, new)
    out = tl.fma(out, old[:, None], result * new[:, None])
    return new_top, weight, out


@triton.jit
def _divided(out, weight):
    return out / tl.where(weight == 0.0, 1.0, weight)[:, None]  # an empty context


@triton.jit
def _merge_stored(
    out,
    partial_out,
    partial_lse,
    num_partitions,
    G: tl.constexpr,
    D: tl.constexpr,
    PADDED_G: tl.constexpr,
    PADDED_D: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Merges the partitions of one row and KV head. Read past the first-level cache, which other programs' stores do
    not reach."""
    groups, dims = tl.arange(0, PADDED_G), tl.arange(0, PADDED_D)
    is_value = (groups < G)[:, None] & (dims < D)[None, :]
    top = tl.full([PADDED_G], float("-inf"), tl.float32)
    weight = tl.zeros([PADDED_G], tl.float32)
    acc = tl.zeros([PADDED_G, PADDED_D], tl.float32)
    for first in range(0, num_partitions, AHEAD):
        lses, results = none(), none()
        for index in tl.static_range(AHEAD):
            stored = (first + index) * G + groups
            exists = first + index < num_partitions
            lse = tl.load(partial_lse + stored, mask=exists & (groups < G), other=float("-inf"), cache_modifier=".cg")
            lses += (tl.where(groups < G, lse, 0.0),)
            values = partial_out + stored[:, None] * D + dims[None, :]
            results += (tl.load(values, mask=exists & is_value, other=0.0, cache_modifier=".cg"),)
        for index in tl.static_range(AHEAD):
            top, weight, acc = _merge(top, weight, acc, lses[index], results[index])
    values = out + groups[:, None] * D + dims[None, :]
    tl.store(values, _divided(acc, weight).to(out.dtype.element_ty), mask=is_value)
