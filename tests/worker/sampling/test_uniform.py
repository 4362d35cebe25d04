"""The hash that sampling draws from: fixed values, and how uniform and independent it is."""

import numpy as np

from pagewire.worker.sampling.uniform import hash_positions, uniform


def reference_hash(seed: int, position: int) -> int:
    """The module's formula in Python's unbounded integers."""
    mask, gamma = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    return mix((mix((seed + gamma) & mask) + gamma * (position + 1)) & mask)


def test_hash_is_the_documented_formula() -> None:
    seeds = [0, 1, 2, 12345, 2**63, 2**64 - 1]
    positions = [0, 1, 7, 40959, 2**31 - 1]
    for seed in seeds:
        got = hash_positions(np.full(len(positions), seed, np.uint64), np.asarray(positions, np.int32))
        assert got.tolist() == [reference_hash(seed, position) for position in positions]


def test_values_are_pinned() -> None:
    """A change here changes every seeded answer, and breaks streams that continue across an upgrade."""
    draws = uniform(np.asarray([0, 0, 1, 42], np.uint64), np.asarray([0, 1, 0, 1000], np.int32))
    assert [int(draw * 2**24) for draw in draws] == [10946269, 11764387, 6177195, 11664524]


def test_neighbouring_seeds_and_positions_are_uniform_and_independent() -> None:
    seeds = np.repeat(np.arange(400, dtype=np.uint64), 400)
    positions = np.tile(np.arange(400), 400)
    draws = uniform(seeds, positions).reshape(400, 400)
    assert draws.dtype == np.float32
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, bins=64, range=(0, 1))[0]
    chi_square = ((counts - draws.size / 64) ** 2 / (draws.size / 64)).sum()
    assert chi_square < 117  # 63 degrees of freedom: exceeded by chance once in 30,000
    for one, other in ((draws[:, :-1], draws[:, 1:]), (draws[:-1], draws[1:]), (draws[:-1, 1:], draws[1:, :-1])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(one.size)
