"""Skinny linears' tiles: parts of a weight and of rows for `pagewire.worker.kernels.triton.skinny`, and how outputs are
shared out.

A tile is [BLOCK, CHUNK] of the weight, so that a warp has whole outputs to itself: lanes read 16 bytes side by side, a
lane's products are added in registers, and one exchange within the warp ends a sum. Tiles of two dimensions only: of
three, Triton 3.6 and 3.7 share out the other two between warps in different ways, one of which passes the weights
through shared memory.
"""

import torch
import triton
import triton.language as tl

from pagewire.worker.kernels.contract import MAX_SKINNY_ROWS

_CHUNK = 256
"""Columns of a tile, which a warp reads at a time: 16 bytes of bf16 per lane."""

_ENOUGH_PROGRAMS = 256
"""About two for each of an H200's 132 multiprocessors: outputs are shared out among more programs while there are
fewer. 1,024 outputs are 256 programs of 4, and 4,096 are 256 of 16: 8 and 32 outputs for the busiest multiprocessor,
where 7.8 and 31 are the average."""

_MAX_WARPS = 4
_MAX_WEIGHT_ROWS = 16
"""Of one program: four for each warp. With eight warps an H200 took 21.0 µs for one row of a layer of Qwen3-0.6B and
43.1 for four, so 20.2 and 35.7; of Qwen3-8B 196 and so 177 for one row."""

_TILES_AHEAD = 16
"""Tiles of one output per warp that are under way at a time: 64 registers of bf16 per lane, all of 4,096 columns."""

_NARROW = 2048
"""Columns of which several rows leave registers for some outputs per warp. Past it Triton 3.6 and 3.7 spilled up to 700
bytes a thread."""


def outputs_per_program(num_rows: int, weight: torch.Tensor, weights_per_output: int) -> int:
    """Outputs per program: 4 at least, so that there are 4 warps."""
    num_outputs = weight.shape[0] // weights_per_output
    block = _MAX_WARPS if _is_heavy(num_rows, weight) else _MAX_WEIGHT_ROWS // weights_per_output
    while block > 4 and num_outputs < _ENOUGH_PROGRAMS * block:
        block //= 2
    return block


def cut(num_rows: int, weight: torch.Tensor, block: int, num_weight_rows: int) -> dict[str, int]:
    """Few variants, all of which a start meets: one row, and MAX_SKINNY_ROWS of which some may be missing.
    `num_weight_rows` are a program's."""
    width = weight.shape[1]
    chunk = min(_CHUNK, triton.next_power_of_2(width))
    num_warps = min(_MAX_WARPS, block)
    tiles_ahead = max(1, _TILES_AHEAD * num_warps // num_weight_rows)
    if num_weight_rows > num_warps and _is_heavy(num_rows, weight):
        tiles_ahead = 2
    return {
        "WIDTH": width,
        "ROWS": 1 if num_rows == 1 else MAX_SKINNY_ROWS,
        "BLOCK": block,
        "CHUNK": chunk,
        "AHEAD": min(tiles_ahead, triton.cdiv(width, chunk)),
        "num_warps": num_warps,
    }


def _is_heavy(num_rows: int, weight: torch.Tensor) -> bool:
    return num_rows > 1 and weight.shape[1] > _NARROW


@triton.jit
def none():
    """The empty tuple, to which tiles are added: loops over chunks are unrolled."""
    return ()


@triton.jit
def load_tile(weight_ptr, weight_rows, chunk, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """[BLOCK, CHUNK] of the weight; each is read once in a step, so it makes room first."""
    columns = chunk * CHUNK + tl.arange(0, CHUNK)
    pointers = weight_ptr + weight_rows[:, None] * WIDTH + columns[None, :]
    if WIDTH % CHUNK == 0:
        tile = tl.load(pointers, eviction_policy="evict_first")
    else:
        tile = tl.load(pointers, mask=columns[None, :] < WIDTH, other=0, eviction_policy="evict_first")
    return tile


@triton.jit
def load_part(pointer, row, num_rows, chunk, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """[CHUNK] of a row; zeros for one that is missing."""
    columns = chunk * CHUNK + tl.arange(0, CHUNK)
    return tl.load(pointer + row * WIDTH + columns, mask=(columns < WIDTH) & (row < num_rows), other=0)


@triton.jit
def load_spread(pointer, row, num_rows, chunk, WIDTH: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """The same as [BLOCK, CHUNK], once for every output: shared out as a tile of the same type is, so that warps need
    not exchange it."""
    columns = chunk * CHUNK + tl.arange(0, CHUNK)
    pointers = tl.broadcast_to((pointer + row * WIDTH + columns)[None, :], (BLOCK, CHUNK))
    return tl.load(pointers, mask=(columns < WIDTH)[None, :] & (row < num_rows), other=0)


@triton.jit
def no_sums(ROWS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """[BLOCK, CHUNK] of zeros for each row; what is left to add goes along CHUNK."""
    sums = none()
    for _ in tl.static_range(ROWS):
        sums += (tl.zeros((BLOCK, CHUNK), tl.float32),)
    return sums


@triton.jit
def add_products(sums, tile, parts, chunk: tl.constexpr, ROWS: tl.constexpr):
    """The sums of all rows with one tile's products; `parts` are the rows' chunks, all rows of a chunk together."""
    values = tile.to(tl.float32)
    new_sums = none()
    for row in tl.static_range(ROWS):
        new_sums += (sums[row] + values * parts[chunk * ROWS + row].to(tl.float32),)
    return new_sums
