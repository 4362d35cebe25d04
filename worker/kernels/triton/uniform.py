"""`pagewire.worker.sampling.uniform` inside a kernel, to the last bit."""

import triton
import triton.language as tl


@triton.jit
def uniform_bits(seed, position):
    """The uniform of a seed (int64, the bits of the unsigned number) and a position, times 2^24: int64."""
    gamma = tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
    count = position.to(tl.int64).to(tl.uint64, bitcast=True) + tl.full((), 1, tl.uint64)
    hashed = _mix(_mix(seed.to(tl.uint64, bitcast=True) + gamma) + gamma * count)
    return (hashed >> 40).to(tl.int64)


@triton.jit
def _mix(z):
    z = (z ^ (z >> 30)) * tl.full((), 0xBF58476D1CE4E5B9, tl.uint64)
    z = (z ^ (z >> 27)) * tl.full((), 0x94D049BB133111EB, tl.uint64)
    return z ^ (z >> 31)
