"""Skinny linears, of at most MAX_SKINNY_ROWS rows, alone or with the residual add and norm before them, a program per
BLOCK outputs.

Signatures and results as in `pagewire.worker.kernels.reference.skinny`, the definition.

A decode step of a few rows reads every weight once and does little else: Qwen3-0.6B's layers are 881 MB in bf16 and the
head 311, so 0.20 and 0.07 ms at an H200's 4.3 TB/s; a kernel between two linears costs as much as a small linear does.
So each program makes the norm of all rows again for its own outputs (10 KB from L2 beside 32 KB of weights), and gate
and up meet in one program.

Weights never change, so where programs overlap with the kernel before theirs (programmatic dependent launch, from sm_90
on) they ask for their first tiles before they wait for it. At the layers' shapes that is the whole weight, which then
arrives while the kernel before finishes. Nothing that a kernel wrote is read or overwritten before the wait, and every
program waits, so that a kernel is over when the next but one passes its own wait.

Weights asked for before griddepcontrol.wait are CUTLASS's example 63; a warp per output is the usual matrix-vector
product.
"""

import torch
import triton
import triton.language as tl

from pagewire.worker.kernels.triton.overlap import launch_options
from pagewire.worker.kernels.triton.skinny_tile import (
    add_products,
    cut,
    load_part,
    load_spread,
    load_tile,
    no_sums,
    none,
    outputs_per_program,
)


def linear(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    out_TN: torch.Tensor,
    *,
    overlap: bool,
) -> None:
    """See `pagewire.worker.kernels.reference.skinny.linear`. `overlap`: programs start before the kernel before them
    is over."""
    num_rows, num_outputs = out_TN.shape
    block = outputs_per_program(num_rows, weight_NK, 1)
    _linear[(triton.cdiv(num_outputs, block),)](
        x_TK,
        weight_NK,
        bias_N,
        out_TN,
        num_rows,
        num_outputs,
        **cut(num_rows, weight_NK, block, block),
        **launch_options(overlap),
    )


def add_norm_linear(
    x_TE: torch.Tensor,
    delta_TE: torch.Tensor,
    scaled_weight_E: torch.Tensor,
    squared_floor: float,
    weight_NE: torch.Tensor,
    bias_N: torch.Tensor | None,
    new_x_TE: torch.Tensor,
    out_TN: torch.Tensor,
    *,
    overlap: bool,
) -> None:
    """See `pagewire.worker.kernels.reference.skinny.add_norm_linear`, and above for `overlap`."""
    num_rows, num_outputs = out_TN.shape
    block = outputs_per_program(num_rows, weight_NE, 1)
    _add_norm_linear[(triton.cdiv(num_outputs, block),)](
        x_TE,
        delta_TE,
        scaled_weight_E,
        weight_NE,
        bias_N,
        new_x_TE,
        out_TN,
        squared_floor,
        num_rows,
        num_outputs,
        IS_GATED=False,
        **cut(num_rows, weight_NE, block, block),
        **launch_options(overlap),
    )


def add_norm_gate_up(
    x_TE: torch.Tensor,
    delta_TE: torch.Tensor,
    scaled_weight_E: torch.Tensor,
    squared_floor: float,
    weight_GE: torch.Tensor,
    bias_G: torch.Tensor | None,
    new_x_TE: torch.Tensor,
    out_TF: torch.Tensor,
    *,
    overlap: bool,
) -> None:
    """See `pagewire.worker.kernels.reference.skinny.add_norm_gate_up`, and above for `overlap`."""
    num_rows, num_outputs = out_TF.shape
    block = outputs_per_program(num_rows, weight_GE, 2)
    _add_norm_linear[(triton.cdiv(num_outputs, block),)](
        x_TE,
        delta_TE,
        scaled_weight_E,
        weight_GE,
        bias_G,
        new_x_TE,
        out_TF,
        squared_floor,
        num_rows,
        num_outputs,
        IS_GATED=True,
        **cut(num_rows, weight_GE, block, 2 * block),
        **launch_options(overlap),
    )


@triton.jit(do_not_specialize=["num_rows", "num_outputs"])
def _linear(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    num_rows,
    num_outputs,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    AHEAD: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
    CHUNKS: tl.constexpr = (WIDTH + CHUNK - 1) // CHUNK
    outputs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    weight_rows = tl.minimum(outputs, num_outputs - 1).to(tl.int64)
    tiles = none()
    for chunk in tl.static_range(AHEAD):
        tiles += (load_tile(weight_ptr, weight_rows, chunk, WIDTH, CHUNK),)
    bias = tl.zeros((BLOCK,), tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + weight_rows).to(tl.float32)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
    parts = none()
    for chunk in tl.static_range(AHEAD):
        for row in tl.static_range(ROWS):
            parts += (load_spread(x_ptr, row, num_rows, chunk, WIDTH, BLOCK, CHUNK),)
    sums = no_sums(ROWS, BLOCK, CHUNK)
    for chunk in tl.static_range(CHUNKS):
        if chunk + AHEAD < CHUNKS:
            tiles += (load_tile(weight_ptr, weight_rows, chunk + AHEAD, WIDTH, CHUNK),)
            for row in tl.static_range(ROWS):
                parts += (load_spread(x_ptr, row, num_rows, chunk + AHEAD, WIDTH, BLOCK, CHUNK),)
        sums = add_products(sums, tiles[chunk], parts, chunk, ROWS)
    for row in tl.static_range(ROWS):
        mask = (outputs < num_outputs) & (row < num_rows)
        tl.store(out_ptr + row * num_outputs + outputs, tl.sum(sums[row], 1) + bias, mask=mask)


@triton.jit(do_not_specialize=["num_rows", "num_outputs"])
def _add_norm_linear(
    x_ptr,
    delta_ptr,
    norm_ptr,
    weight_ptr,
    bias_ptr,
    new_x_ptr,
    out_ptr,
    squared_floor,
    num_rows,
    num_outputs,
    IS_GATED: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    AHEAD: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Where it IS_GATED, output i is silu of weight row i's product times weight row num_outputs + i's."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
    CHUNKS: tl.constexpr = (WIDTH + CHUNK - 1) // CHUNK
    outputs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    weight_rows = tl.minimum(outputs, num_outputs - 1).to(tl.int64)
    up_rows = weight_rows + num_outputs
    tiles, up_tiles, norm_parts = none(), none(), none()
    for chunk in tl.static_range(AHEAD):
        tiles += (load_tile(weight_ptr, weight_rows, chunk, WIDTH, CHUNK),)
        if IS_GATED:
            up_tiles += (load_tile(weight_ptr, up_rows, chunk, WIDTH, CHUNK),)
    for chunk in tl.static_range(CHUNKS):
        norm_parts += (load_part(norm_ptr, 0, 1, chunk, WIDTH, CHUNK),)
    bias, up_bias = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + weight_rows).to(tl.float32)
        if IS_GATED:
            up_bias = tl.load(bias_ptr + up_rows).to(tl.float32)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()

    x_parts = none()
    for chunk in tl.static_range(CHUNKS):
        for row in tl.static_range(ROWS):
            delta = load_part(delta_ptr, row, num_rows, chunk, WIDTH, CHUNK).to(tl.float32)
            x_parts += (load_part(x_ptr, row, num_rows, chunk, WIDTH, CHUNK) + delta,)
    scales = none()
    for row in tl.static_range(ROWS):
        squares = tl.zeros((CHUNK,), tl.float32)
        for chunk in tl.static_range(CHUNKS):
            squares += x_parts[chunk * ROWS + row] * x_parts[chunk * ROWS + row]
        scales += (tl.rsqrt(tl.sum(squares, 0) + squared_floor),)

    sums, up_sums = no_sums(ROWS, BLOCK, CHUNK), no_sums(ROWS, BLOCK, CHUNK)
    parts = none()
    for chunk in tl.static_range(CHUNKS):
        if chunk + AHEAD < CHUNKS:
            tiles += (load_tile(weight_ptr, weight_rows, chunk + AHEAD, WIDTH, CHUNK),)
            if IS_GATED:
                up_tiles += (load_tile(weight_ptr, up_rows, chunk + AHEAD, WIDTH, CHUNK),)
        for row in tl.static_range(ROWS):
            normed = x_parts[chunk * ROWS + row] * scales[row] * norm_parts[chunk]
            parts += (normed.to(weight_ptr.dtype.element_ty)[None, :],)
        sums = add_products(sums, tiles[chunk], parts, chunk, ROWS)
        if IS_GATED:
            up_sums = add_products(up_sums, up_tiles[chunk], parts, chunk, ROWS)

    for row in tl.static_range(ROWS):
        y = tl.sum(sums[row], 1) + bias
        if IS_GATED:
            # exp(-y) overflows to infinity where y is very negative, and the quotient is then -0, as it should be.
            y = y / (1 + tl.exp(-y)) * (tl.sum(up_sums[row], 1) + up_bias)
        mask = (outputs < num_outputs) & (row < num_rows)
        tl.store(out_ptr + row * num_outputs + outputs, y, mask=mask)
        for chunk in tl.static_range(CHUNKS):
            columns = chunk * CHUNK + tl.arange(0, CHUNK)
            mask = (columns < WIDTH) & (row < num_rows) & (tl.program_id(0) == 0)
            tl.store(new_x_ptr + row * WIDTH + columns, x_parts[chunk * ROWS + row], mask=mask)
