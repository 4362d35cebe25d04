"""The attention kernels' tile: a piece of a paged context, and one step of the online softmax over it.

Inlined into `paged_decode` and `paged_prefill`. Scores are in units of log2: exp2 is one instruction, and the factor
log2(e) rides on the softmax scale, which multiplies fp32 scores rather than rounded queries. Products of bf16 are
summed in fp32; weights are rounded to bf16 for the second product, as FlashAttention does.

Source: FlashAttention-2 (arXiv 2307.08691), algorithm 1; PagedAttention (arXiv 2309.06180) for the tables.
"""

import functools

import torch
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
_SHARED_BYTES_OF_HOPPER = 227 << 10


@functools.cache
def shared_bytes(device: torch.device) -> int:
    """Shared memory that one program may have on this device; Hopper's, where the interpreter stands in for one."""
    if device.type != "cuda":
        return _SHARED_BYTES_OF_HOPPER
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index or 0)
    return int(properties["max_shared_mem"])


def upcasts() -> bool:
    """Whether kernels must widen what they load: Triton's interpreter multiplies bf16 matrices wrongly."""
    return bool(triton.knobs.runtime.interpret)


@triton.jit
def load_blocks(table, first_token, end, P: tl.constexpr, TILE: tl.constexpr):
    """Ids of the blocks of a tile's tokens that are less than `end`: one, where a tile lies in one block, else one per
    token. first_token is a multiple of TILE and may be past `end`.

    Load them a tile ahead and carry them through the loop: Triton requests tiles early only as far as it need not wait
    for an address, and a table entry looked up in the same turn of the loop left no tile under way during a product.
    """
    if P % TILE == 0:
        blocks = tl.load(table + first_token // P, mask=first_token < end, other=0)
    else:
        tokens = first_token + tl.arange(0, TILE)
        blocks = tl.load(table + tokens // P, mask=tokens < end, other=0)
    return blocks


@triton.jit
def load_kv_tile(
    kv,
    blocks,
    value_offset,
    kv_head,
    first_token,
    end,
    K: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Keys and values of tokens first_token … first_token + TILE of one KV head, [TILE, PADDED_D] each; zero from `end`
    on where MASKED (else all of them exist), and past D. `blocks` is what `load_blocks` gave for the tile.

    Offsets of blocks take 64 bits: a layer of a large cache has more than 2³¹ values.
    """
    tokens = first_token + tl.arange(0, TILE)
    dims = tl.arange(0, PADDED_D)
    block_offsets = blocks.to(tl.int64) * (K * P * D)
    if P % TILE == 0:
        offsets = block_offsets + (kv_head * P + first_token % P) * D + tl.arange(0, TILE)[:, None] * D
    else:
        offsets = (block_offsets + (kv_head * P + tokens % P) * D)[:, None]
    keys = kv + offsets + dims[None, :]
    values = keys + value_offset
    if MASKED:
        exists = (tokens < end)[:, None] & (dims < D)[None, :]
        k = tl.load(keys, mask=exists, other=0.0)
        v = tl.load(values, mask=exists, other=0.0)
    elif PADDED_D != D:
        k = tl.load(keys, mask=(dims < D)[None, :], other=0.0)
        v = tl.load(values, mask=(dims < D)[None, :], other=0.0)
    else:
        k = tl.load(keys)
        v = tl.load(values)
    return k, v


@triton.jit
def attend_tile(q, k, v, is_seen, qk_scale, top, total, acc, MASKED: tl.constexpr, UPCAST: tl.constexpr):
    """Adds a tile to each row's running maximum `top`, sum of weights `total` and weighted sum of values `acc`.

    q [ROWS, PADDED_D], is_seen [ROWS, TILE] or wider (read where MASKED). Every row must have seen a token after its
    first tile: a row that has not would be NaN.
    """
    if UPCAST:
        q, k, v = q.to(tl.float32), k.to(tl.float32), v.to(tl.float32)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * qk_scale
    if MASKED:
        scores = tl.where(is_seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return new_top, total, acc
