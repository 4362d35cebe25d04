"""A linear of any number of rows in Triton, in which a row's bits do not depend on how many rows there are.

Signature and results as in `pagewire.worker.kernels.reference.skinny.linear`, the definition.

    program: a tile of rows × a tile of outputs, all of the width, in ascending order, into one accumulator in fp32

Each output is one chain of products along the width: no split of it, no choice by trial. Tiles follow from the number
of rows, but only in how many rows and outputs share a program: every tile has 64 rows or a multiple, so the products
are the same instruction (a warp group's on Hopper, 64 rows and 16 columns of the width deep; mma.sync of 16 × 16
elsewhere), and an element of its result is computed from its own row and column. Idle rows are zeros that nobody
stores. That different tiles come to the same bits is tried at every start (`pagewire.worker.linears.exact`) and at full
widths by the GPU report's part "exact".

Few rows wait for the weights alone, which small tiles of outputs spread over more multiprocessors. Many rows wait for
products: 128 × 256 tiles read each value from the second-level cache least often.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from pagewire.worker.kernels.triton.attention_tile import shared_bytes, upcasts
from pagewire.worker.kernels.triton.overlap import begin_overlapped, launch_options

_GROUP = 8
"""Tiles of rows that are computed side by side, so that what they read is still in the second-level cache."""
_NARROW = 2048
"""Outputs that are shared out in smaller tiles, deeper for as many bytes under way: of 1,024, tiles of 32 would occupy
a quarter of an H200."""
_VERY_WIDE = 1 << 15
"""Outputs that occupy the device whatever the tile."""


@dataclass(frozen=True, slots=True)
class LinearTile:
    """How a program cuts rows, outputs and the width."""

    rows: int
    outputs: int
    depth: int
    num_warps: int
    num_stages: int


def linear_tiles(num_outputs: int, itemsize: int, shared: int) -> list[tuple[int, LinearTile]]:
    """All that a weight is multiplied in, each with the most rows it is for; the last one has no limit but 2³¹."""
    most = (1 << 31) - 1
    if itemsize > 2:  # without tensor cores, for comparisons alone
        return [(most, LinearTile(rows=32, outputs=32, depth=32, num_warps=4, num_stages=1))]
    narrow = num_outputs <= _NARROW
    if shared < 160 << 10:
        few = LinearTile(rows=64, outputs=16 if narrow else 32, depth=64, num_warps=4, num_stages=4)
        return [(64, few), (most, LinearTile(rows=128, outputs=128, depth=32, num_warps=8, num_stages=3))]
    many = LinearTile(rows=128, outputs=256, depth=64, num_warps=8, num_stages=3)
    if narrow:
        few = LinearTile(rows=64, outputs=16, depth=256, num_warps=4, num_stages=5)
        return [(64, few), (512, LinearTile(rows=64, outputs=32, depth=128, num_warps=4, num_stages=4)), (most, many)]
    few = LinearTile(rows=64, outputs=32, depth=128, num_warps=4, num_stages=4)
    if num_outputs > _VERY_WIDE:
        return [(64, LinearTile(rows=64, outputs=64, depth=64, num_warps=4, num_stages=4)), (most, many)]
    return [(64, few), (512, LinearTile(rows=128, outputs=128, depth=64, num_warps=8, num_stages=4)), (most, many)]


def linear(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    out_TN: torch.Tensor,
    *,
    overlap: bool = False,
) -> None:
    """See `pagewire.worker.kernels.reference.skinny.linear`, for any number of rows; all tensors are contiguous.
    `overlap`: see `pagewire.worker.kernels.triton.overlap`."""
    num_rows, num_outputs = out_TN.shape
    if num_rows == 0:
        return
    tiles = linear_tiles(num_outputs, weight_NK.element_size(), shared_bytes(x_TK.device))
    tile = next(tile for most_rows, tile in tiles if num_rows <= most_rows)
    linear_by(tile, x_TK, weight_NK, bias_N, out_TN, overlap=overlap)


def linear_by(
    tile: LinearTile,
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    out_TN: torch.Tensor,
    *,
    overlap: bool = False,
) -> None:
    """The same in these tiles."""
    (num_rows, num_outputs), width = out_TN.shape, weight_NK.shape[1]
    grid = (triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_outputs, tile.outputs),)
    _exact_linear[grid](
        x_TK,
        weight_NK,
        bias_N,
        out_TN,
        num_rows,
        num_outputs,
        width,
        IS_EVEN=width % tile.depth == 0,
        ROWS=tile.rows,
        OUTPUTS=tile.outputs,
        DEPTH=tile.depth,
        GROUP=_GROUP,
        UPCAST=upcasts(),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=False,
        **launch_options(overlap),
    )


# Widths are specialized, on being multiples of 16 alone: all of a model's linears share few variants.
@triton.jit(do_not_specialize=["num_rows", "num_outputs"])
def _exact_linear(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    num_rows,
    num_outputs,
    width,
    IS_EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    UPCAST: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """IS_EVEN: the width is a multiple of DEPTH."""
    begin_overlapped(OVERLAP)
    per_group = GROUP * tl.cdiv(num_outputs, OUTPUTS)
    first_tile = tl.program_id(0) // per_group * GROUP
    group = tl.minimum(GROUP, tl.cdiv(num_rows, ROWS) - first_tile)
    index = tl.program_id(0) % per_group
    # Addresses are a tile's, of 64 bits, and offsets within it, of 32: all of 64 bits did not fit the registers.
    first_row = (first_tile + index % group) * ROWS
    first_output = index // group * OUTPUTS
    rows, outputs = tl.arange(0, ROWS)[:, None], tl.arange(0, OUTPUTS)
    is_row = first_row + rows < num_rows
    # What lies past the last output is multiplied too, and not stored.
    weight_rows = tl.minimum(outputs, num_outputs - 1 - first_output)
    columns = tl.arange(0, DEPTH)[None, :]
    x_tile = x_ptr + first_row.to(tl.int64) * width + (rows * width + columns)
    weight_tile = weight_ptr + first_output.to(tl.int64) * width + (weight_rows[:, None] * width + columns)
    acc = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for first in range(0, width, DEPTH):
        if IS_EVEN:
            x = tl.load(x_tile + first, mask=is_row, other=0.0)
            weight = tl.load(weight_tile + first)
        else:
            x = tl.load(x_tile + first, mask=is_row & (first + columns < width), other=0.0)
            weight = tl.load(weight_tile + first, mask=first + columns < width, other=0.0)
        if UPCAST:
            x, weight = x.to(tl.float32), weight.to(tl.float32)
        acc = tl.dot(x, tl.trans(weight), acc, input_precision="ieee")
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + first_output + weight_rows).to(tl.float32)[None, :]
    out_tile = out_ptr + first_row.to(tl.int64) * num_outputs + first_output
    is_output = (outputs < num_outputs - first_output)[None, :]
    tl.store(
        out_tile + (rows * num_outputs + outputs[None, :]), acc.to(out_ptr.dtype.element_ty), mask=is_row & is_output
    )
