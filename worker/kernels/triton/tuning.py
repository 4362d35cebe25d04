"""How the elementwise kernels are cut into programs, reasoned for an H200 (132 multiprocessors, 4.3 TB/s copied).

They read and write every byte once, so what matters is that a thread has 16 bytes to load at a time and that a large
step has many more programs than multiprocessors. One row is bounded by latency whatever the cut.
"""

import triton

ACTIVATION_BLOCK = 1024
"""Values of gate, and as many of up, per program of 4 warps: 8 bf16 values per thread, one 16-byte load each. One row
of Qwen3-8B (12,288 values) is 12 programs."""

ROTATED_HEADS = 16
"""Heads per program of 4 warps: each half of 16 × 128 values is 8 per thread, one 16-byte load. One row of Qwen3-0.6B
(32 heads) is 2 programs."""

WEIGHING_PROGRAMS, PICKING_PROGRAMS = 6400, 1056
"""About 48 and 8 per multiprocessor. A program that weighs costs as much before its first chunk as for one, so it takes
three at 256 rows; more would leave a longer last wave. One that picks reads little, and mostly nothing."""

SEARCH_WARPS = 8
FEW_TILE = 512
MANY_TILE = 4096
"""Ids that the search holds or reads at a time, in one program of SEARCH_WARPS: the few dozen of an ordinary top-k are
two per thread, whose sums cost little more than the exchange between the warps. 4,096 are 16 per thread: as many as the
registers hold, and enough loads under way where a whole row is read again for every pivot."""


def norm_warps(width: int) -> int:
    """One program per row, because the sum needs the whole of it: 8 values per thread, one 16-byte load of bf16, and 16
    past a width of 4,096; they stay in registers between the sum and the store."""
    return int(min(16, max(1, triton.next_power_of_2(width) // 256)))
