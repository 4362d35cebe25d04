"""Elementwise kernels between a decoder's linears, in Triton: the norm, rotation with the KV write, the gated
activation.

Signatures, layouts and results as in `pagewire.worker.kernels.reference.elementwise`, the definition. `overlap` is that
of `pagewire.worker.kernels.triton.overlap`.

They read and write every byte once, so what matters is that a thread has 16 bytes to load at a time and that a large
step has many more programs than an H200 has multiprocessors, 132, at 4.3 TB/s copied. One row is bounded by latency
whatever the cut. Floors, with values of 2 bytes, for 256 rows of Qwen3-0.6B on an H200:

    norm         a program per row, which is read once, kept in registers in fp32 while its squares are summed, and
                 written once: start 8 E bytes a row (2 read, 4 + 2 written), add 12 E (4 + 2 read, 4 + 2 written), and
                 once the weight, 4 E: 3.1 MB, under 1 µs, so that a launch costs more than the work
    rotation     programs (row, group of heads): each takes 16 heads of a row as two tiles [heads, D/2], the
                 first and the second of each pair, so that the turn needs no exchange between threads. q goes back
                 where it was, k and v straight to the cache, where a head's position is contiguous, D values: one
                 transaction of 256 bytes for D = 128. J = H + 2K heads: 2 J D read, 2 J D written, and the turns, 4 D:
                 17 kB a row and layer, 1 µs
    activation   programs (row, block of columns): 4 F read, 2 F written; F 3,072: 4.7 MB, 1.1 µs

The norm's fusion is that of vLLM's `fused_add_rms_norm`, but the sum of the layers stays in fp32.
"""

import torch
import triton
import triton.language as tl

from pagewire.worker.kernels.triton.overlap import begin_overlapped, launch_options

_ACTIVATION_BLOCK = 1024
"""Values of gate, and as many of up, per program of 4 warps: 8 bf16 values per thread, one 16-byte load each. One row
of Qwen3-8B (12,288 values) is 12 programs."""

_ROTATED_HEADS = 16
"""Heads per program of 4 warps: each half of 16 × 128 values is 8 per thread, one 16-byte load. One row of Qwen3-0.6B
(32 heads) is 2 programs."""


def start_rms_norm(
    rows_TE: torch.Tensor,
    x_TE: torch.Tensor,
    scaled_weight_E: torch.Tensor,
    squared_floor: float,
    out_TE: torch.Tensor,
    *,
    overlap: bool = False,
) -> None:
    """See `pagewire.worker.kernels.reference.elementwise.start_rms_norm`; all tensors are contiguous."""
    _launch(x_TE, rows_TE, scaled_weight_E, squared_floor, out_TE, is_start=True, overlap=overlap)


def add_rms_norm(
    x_TE: torch.Tensor,
    delta_TE: torch.Tensor,
    scaled_weight_E: torch.Tensor,
    squared_floor: float,
    out_TE: torch.Tensor,
    *,
    overlap: bool = False,
) -> None:
    """See `pagewire.worker.kernels.reference.elementwise.add_rms_norm`; all tensors are contiguous."""
    _launch(x_TE, delta_TE, scaled_weight_E, squared_floor, out_TE, is_start=False, overlap=overlap)


def _launch(
    x_TE: torch.Tensor,
    delta_TE: torch.Tensor,
    scaled_weight_E: torch.Tensor,
    squared_floor: float,
    out: torch.Tensor,
    *,
    is_start: bool,
    overlap: bool,
) -> None:
    num_rows, width = out.shape
    if num_rows == 0:
        return
    _normalize[(num_rows,)](
        x_TE,
        delta_TE,
        scaled_weight_E,
        out,
        squared_floor,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        IS_START=is_start,
        num_warps=_norm_warps(width),
        **launch_options(overlap),
    )


def _norm_warps(width: int) -> int:
    """One program per row, because the sum needs the whole of it: 8 values per thread, one 16-byte load of bf16, and 16
    past a width of 4,096; they stay in registers between the sum and the store."""
    return int(min(16, max(1, triton.next_power_of_2(width) // 256)))


@triton.jit
def _normalize(
    x_ptr,
    delta_ptr,
    weight_ptr,
    out_ptr,
    squared_floor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_START: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < WIDTH
    weight = tl.load(weight_ptr + columns, mask=mask, other=0)  # no load can begin earlier than a store before it
    begin_overlapped(OVERLAP)
    x = tl.load(delta_ptr + row * WIDTH + columns, mask=mask, other=0).to(tl.float32)
    if not IS_START:
        x += tl.load(x_ptr + row * WIDTH + columns, mask=mask, other=0)
    y = x * tl.rsqrt(tl.sum(x * x) + squared_floor) * weight
    tl.store(out_ptr + row * WIDTH + columns, y, mask=mask)
    tl.store(x_ptr + row * WIDTH + columns, x, mask=mask)


def rotate_and_store(
    qkv: torch.Tensor,
    qk_weight_JD: torch.Tensor | None,
    squared_floor: float,
    cos_sin_PD: torch.Tensor,
    positions_T: torch.Tensor,
    kv_positions_T: torch.Tensor,
    kv_layer: torch.Tensor,
    *,
    overlap: bool = False,
) -> None:
    """See `pagewire.worker.kernels.reference.elementwise.rotate_and_store`; all tensors are contiguous."""
    num_rows = qkv.shape[0]
    if num_rows == 0:
        return
    _, num_blocks, num_kv_heads, block_size, head_dim = kv_layer.shape
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    group = min(_ROTATED_HEADS, triton.next_power_of_2(num_heads + 2 * num_kv_heads))
    _rotate_and_store[(num_rows, triton.cdiv(num_heads + 2 * num_kv_heads, group))](
        qkv,
        qkv if qk_weight_JD is None else qk_weight_JD,
        cos_sin_PD,
        positions_T,
        kv_positions_T,
        kv_layer,
        squared_floor,
        num_blocks,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HALF=head_dim // 2,
        BLOCK_SIZE=block_size,
        GROUP=group,
        HALF_BLOCK=triton.next_power_of_2(head_dim // 2),
        HAS_NORM=qk_weight_JD is not None,
        **launch_options(overlap),
    )


@triton.jit
def _rotate_and_store(
    qkv_ptr,
    weight_ptr,
    cos_sin_ptr,
    positions_ptr,
    kv_positions_ptr,
    kv_ptr,
    squared_floor,
    num_blocks,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HAS_NORM: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    begin_overlapped(OVERLAP)
    NUM_TURNED: tl.constexpr = NUM_HEADS + NUM_KV_HEADS
    NUM_ALL: tl.constexpr = NUM_TURNED + NUM_KV_HEADS
    DIM: tl.constexpr = 2 * HALF
    row = tl.program_id(0).to(tl.int64)
    heads = (tl.program_id(1) * GROUP + tl.arange(0, GROUP))[:, None]
    pairs = tl.arange(0, HALF_BLOCK)[None, :]
    mask = (heads < NUM_ALL) & (pairs < HALF)
    is_turned = heads < NUM_TURNED

    # Everything is requested before anything is waited for or stored: one row is bounded by latency.
    position, kv_position = tl.load(positions_ptr + row), tl.load(kv_positions_ptr + row)
    source_ptr = qkv_ptr + row * (NUM_ALL * DIM) + heads * DIM + pairs
    first = tl.load(source_ptr, mask=mask, other=0).to(tl.float32)
    second = tl.load(source_ptr + HALF, mask=mask, other=0).to(tl.float32)
    turn_ptr = cos_sin_ptr + position * DIM + pairs
    cos = tl.load(turn_ptr, mask=pairs < HALF, other=0)
    sin = tl.load(turn_ptr + HALF, mask=pairs < HALF, other=0)
    # Heads of v pass through: no norm, and a turn by nothing.
    if HAS_NORM:
        weight_mask = mask & is_turned
        first_weight = tl.load(weight_ptr + heads * DIM + pairs, mask=weight_mask, other=1)
        second_weight = tl.load(weight_ptr + heads * DIM + HALF + pairs, mask=weight_mask, other=1)
        sums = tl.sum(first * first + second * second, axis=1)[:, None]
        scale = tl.where(is_turned, tl.rsqrt(sums + squared_floor), 1.0)
        first *= scale * first_weight
        second *= scale * second_weight
    cos = tl.where(is_turned, cos, 1.0)
    sin = tl.where(is_turned, sin, 0.0)
    turned_first = first * cos - second * sin
    turned_second = second * cos + first * sin

    q_mask = mask & (heads < NUM_HEADS)
    tl.store(source_ptr, turned_first, mask=q_mask)
    tl.store(source_ptr + HALF, turned_second, mask=q_mask)
    kv_mask = mask & (heads >= NUM_HEADS) & (kv_position >= 0)
    kv_head = tl.where(is_turned, heads - NUM_HEADS, heads - NUM_TURNED)
    block = tl.where(is_turned, 0, num_blocks).to(tl.int64) + kv_position // BLOCK_SIZE
    cache_ptr = kv_ptr + ((block * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + kv_position % BLOCK_SIZE) * DIM + pairs
    tl.store(cache_ptr, turned_first, mask=kv_mask)
    tl.store(cache_ptr + HALF, turned_second, mask=kv_mask)


def silu_mul(gate_up: torch.Tensor, out_TF: torch.Tensor, *, overlap: bool = False) -> None:
    """See `pagewire.worker.kernels.reference.elementwise.silu_mul`; both tensors are contiguous."""
    num_rows, width = out_TF.shape
    if num_rows == 0:
        return
    block = min(_ACTIVATION_BLOCK, triton.next_power_of_2(width))
    _silu_mul[(num_rows, triton.cdiv(width, block))](
        gate_up, out_TF, WIDTH=width, BLOCK=block, **launch_options(overlap)
    )


@triton.jit
def _silu_mul(gate_up_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    begin_overlapped(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < WIDTH
    gate_ptr = gate_up_ptr + row * (2 * WIDTH) + columns
    gate = tl.load(gate_ptr, mask=mask, other=0).to(tl.float32)
    up = tl.load(gate_ptr + WIDTH, mask=mask, other=0).to(tl.float32)
    # exp(-gate) overflows to infinity where gate is very negative, and the quotient is then -0, as it should be.
    tl.store(out_ptr + row * WIDTH + columns, gate / (1 + tl.exp(-gate)) * up, mask=mask)
