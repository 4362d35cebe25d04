"""The randomness of sampling: one number per (seed, position), and nothing else.

A counter-based generator: no state to keep, restore or share, so a draw is the same on every rank, after a preemption
and after a restart. The hash is two rounds of SplitMix64's finalizer (Steele, Lea, Flood: Fast splittable pseudorandom
number generators, OOPSLA 2014; constants of variant 13 by David Stafford):

    mix(z)  = z ^= z >> 30;  z *= 0xBF58476D1CE4E5B9;  z ^= z >> 27;  z *= 0x94D049BB133111EB;  z ^= z >> 31
    hash    = mix( mix(seed + G) + G * (position + 1) )        G = 0x9E3779B97F4A7C15, all modulo 2^64
    uniform = (hash >> 40) * 2^-24                             24 bits: exact in float32, in [0, 1)

Only additions, multiplications, shifts and exclusive ors of 64-bit integers, so a GPU kernel gets the same bits. The
inner round is there because neighbouring seeds are the rule: output i of a request samples with seed + i.
"""

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
UInt64Array = npt.NDArray[np.uint64]


def _constant(value: int) -> UInt64Array:
    """Shape []: numpy would make an array of a scalar in every operation, which takes as long as the operation."""
    return np.array(value, np.uint64)


_GAMMA = _constant(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = _constant(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = _constant(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = _constant(30), _constant(27), _constant(31)
_ONE = _constant(1)
_TOP_24_BITS = _constant(40)
_ULP = np.float32(2**-24)


def hash_positions(seeds: UInt64Array, positions: npt.NDArray[np.integer]) -> UInt64Array:
    """64 random bits for each seed and position; arrays of the same length."""
    return _mix(_mix(seeds + _GAMMA) + _GAMMA * (positions.astype(np.uint64) + _ONE))


def uniform(seeds: UInt64Array, positions: npt.NDArray[np.integer]) -> Float32Array:
    """A number in [0, 1) for each seed and position."""
    return (hash_positions(seeds, positions) >> _TOP_24_BITS).astype(np.float32) * _ULP


def _mix(z: UInt64Array) -> UInt64Array:
    z = (z ^ (z >> _SHIFT_1)) * _MULTIPLIER_1
    z = (z ^ (z >> _SHIFT_2)) * _MULTIPLIER_2
    return z ^ (z >> _SHIFT_3)
