"""Attention of prompt chunks over paged KV in Triton: FlashAttention-2 over block tables.

Signature, shapes and results as in `pagewire.worker.kernels.reference.paged_prefill`, the definition.

    program (KV head, tile, sequence): the tile's rows are its tokens' G query heads, token after token

                      context
             ├──── past ────┼─ tokens ─┤
    token 0  ██████████████ █              full tiles: every row sees every token of them; no mask
    token 1  ██████████████ █ █            border tiles: the last of the context, masked
    token 2  ██████████████ █ █ █

The query heads of a KV head share its tiles of keys and values. A token's result depends on its position and the
context alone: where its tile begins decides which tokens share a program, not the order of its sums, and so it would be
the same in a chunk of another size, up to where masks are applied to what is zero anyway. Tiles are handed out longest
first, so that no long one is left for the end.

Floor: 4 · D operations per query head and (row, token) pair seen; a prompt of L tokens has L² / 2 pairs. Qwen3-0.6B (16
heads of 128), 1k tokens: 4.3 GFLOP a layer, 5.4 µs at 790 TFLOP/s, an eighth of what its linears take.

Source: FlashAttention-2 (arXiv 2307.08691), algorithm 1.
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


@dataclass(frozen=True, slots=True)
class PrefillTile:
    """How a program cuts rows and context."""

    rows: int
    tokens: int
    num_warps: int
    num_stages: int


def prefill_tile(head_dim: int, itemsize: int, shared: int) -> PrefillTile:
    """Rows and tokens of a tile. Registers and shared memory as the compiler reports them for sm_90.

    head dim   rows × tokens, warps   registers   shared
    ≤ 64       128 × 64, 4            228         64 KB    narrow heads leave four warps' registers for all 128 rows
    ≤ 128      128 × 64, 8            178         128 KB   two warp groups of 64 rows; 128 tokens took 251 registers
    ≤ 256      128 × 32, 8            237         160 KB   64 × 64 with four warps spilled

    With three stages two tiles are on their way during a product. Devices with 99 KB of shared memory take 64 × 32 and
    two stages. fp32 (comparisons only) multiplies without tensor cores, in tiles that fit registers.
    """
    padded = triton.next_power_of_2(head_dim)
    if itemsize > 2:
        return PrefillTile(rows=32, tokens=32, num_warps=4, num_stages=1)
    if shared < 160 << 10:
        return PrefillTile(rows=64, tokens=32, num_warps=4, num_stages=2)
    if padded <= 64:
        return PrefillTile(rows=128, tokens=64, num_warps=4, num_stages=3)
    if padded <= 128:
        return PrefillTile(rows=128, tokens=64, num_warps=8, num_stages=3)
    return PrefillTile(rows=128, tokens=32, num_warps=8, num_stages=3)


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
    _, H, D = q_THD.shape
    _, _, K, P, _ = kv_layer.shape
    num_seqs = context_lens_B.shape[0]
    if num_seqs == 0 or max_query_len == 0:
        return
    G = H // K
    tile = prefill_tile(D, q_THD.element_size(), shared_bytes(q_THD.device))
    rows = max(tile.rows, triton.next_power_of_2(G))
    _paged_prefill_kernel[(K, triton.cdiv(max_query_len, rows // G), num_seqs)](
        q_THD,
        kv_layer,
        block_tables_BM,
        query_starts,
        context_lens_B,
        out_THD,
        q_THD.stride(0),
        kv_layer.stride(0),
        block_tables_BM.stride(0),
        scale * LOG2_E,
        K=K,
        G=G,
        P=P,
        D=D,
        PADDED_D=triton.next_power_of_2(D),
        ROWS=rows,
        TILE=tile.tokens,
        UPCAST=upcasts(),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


# Where the rows that decode end, these begin at any word; a variant for each alignment would be compiled while serving.
@triton.jit(do_not_specialize=["tables", "query_starts", "context_lens"])
def _paged_prefill_kernel(
    q,
    kv,
    tables,
    query_starts,
    context_lens,
    out,
    q_stride,
    value_offset,
    table_stride,
    qk_scale,
    K: tl.constexpr,
    G: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    QUERIES: tl.constexpr = ROWS // G
    kv_head, seq = tl.program_id(0), tl.program_id(2)
    first_query = (tl.num_programs(1) - 1 - tl.program_id(1)) * QUERIES
    first_row = tl.load(query_starts + seq)
    num_queries = tl.load(query_starts + seq + 1) - first_row
    if first_query >= num_queries:
        return
    num_past = tl.load(context_lens + seq) - num_queries
    table = tables + seq * table_stride

    # Row r is query r // G of the tile, head r % G of the KV head's; those past QUERIES · G compute what nobody reads.
    rows, dims = tl.arange(0, ROWS), tl.arange(0, PADDED_D)
    query, head = first_query + rows // G, kv_head * G + rows % G
    is_value = ((rows < QUERIES * G) & (query < num_queries))[:, None] & (dims < D)[None, :]
    q += (first_row + query)[:, None].to(tl.int64) * q_stride + head[:, None] * D
    q_tile = tl.load(q + dims[None, :], mask=is_value, other=0.0)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, PADDED_D], tl.float32)

    end = num_past + tl.minimum(first_query + QUERIES, num_queries)
    border = tl.maximum(num_past + first_query + 1, 0) // TILE * TILE
    next_blocks = load_blocks(table, 0, end, P, TILE)
    for first_token in range(0, border, TILE):
        blocks, next_blocks = next_blocks, load_blocks(table, first_token + TILE, end, P, TILE)
        k, v = load_kv_tile(kv, blocks, value_offset, kv_head, first_token, end, K, P, D, PADDED_D, TILE, MASKED=False)
        top, total, acc = attend_tile(q_tile, k, v, query[:, None], qk_scale, top, total, acc, False, UPCAST)
    for first_token in range(border, end, TILE):
        blocks, next_blocks = next_blocks, load_blocks(table, first_token + TILE, end, P, TILE)
        k, v = load_kv_tile(kv, blocks, value_offset, kv_head, first_token, end, K, P, D, PADDED_D, TILE, MASKED=True)
        # A row past the last query would also see the zeros from `end` on: as harmless as the row.
        is_seen = (first_token + tl.arange(0, TILE))[None, :] <= (num_past + query)[:, None]
        top, total, acc = attend_tile(q_tile, k, v, is_seen, qk_scale, top, total, acc, True, UPCAST)

    total = tl.where(total == 0.0, 1.0, total)  # an empty context
    out += (first_row + query)[:, None].to(tl.int64) * (K * G * D) + head[:, None] * D
    tl.store(out + dims[None, :], (acc / total[:, None]).to(out.dtype.element_ty), mask=is_value)
