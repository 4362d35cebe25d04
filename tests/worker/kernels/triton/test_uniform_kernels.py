"""The uniform inside a kernel and in torch, to the last bit."""

import numpy as np
import torch
import triton
import triton.language as tl

from pagewire.worker.kernels.reference.sampling import uniform_bits as torch_uniform_bits
from pagewire.worker.kernels.triton.weights import uniform_bits
from pagewire.worker.sampling import uniform as definition

EDGES = [0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]


@triton.jit
def _write_uniform(seed_ptr, position_ptr, out_ptr, NUM: tl.constexpr):
    index = tl.arange(0, NUM)
    tl.store(out_ptr + index, uniform_bits(tl.load(seed_ptr + index), tl.load(position_ptr + index)))


@triton.jit
def _write_uniform_of_one(seed_ptr, position_ptr, out_ptr):
    tl.store(out_ptr, uniform_bits(tl.load(seed_ptr), tl.load(position_ptr)))


def pairs() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    seeds = np.concatenate([np.asarray(EDGES * 3, np.uint64), generator.integers(0, 2**64, 1000, dtype=np.uint64)])
    positions = np.concatenate(
        [np.repeat(np.asarray([0, 1, 2**31 - 1], np.int32), len(EDGES)), generator.integers(0, 2**20, 1000)]
    )
    return seeds, positions.astype(np.int32)


def expected_bits(seeds: np.ndarray, positions: np.ndarray) -> list[int]:
    return (definition.uniform(seeds, positions) * np.float32(2**24)).astype(np.int64).tolist()


def test_a_kernel_computes_the_same_bits() -> None:
    seeds, positions = pairs()
    for dtype in (torch.int32, torch.int64):
        out = torch.empty(1024, dtype=torch.int64)
        seed, position = torch.from_numpy(seeds[:1024].view(np.int64)), torch.from_numpy(positions[:1024]).to(dtype)
        _write_uniform[(1,)](seed, position, out, NUM=1024)
        assert out.tolist() == expected_bits(seeds[:1024], positions[:1024])


def test_a_single_draw_computes_the_same_bits() -> None:
    seeds, positions = pairs()
    out = torch.empty(1, dtype=torch.int64)
    for index in range(len(EDGES) * 3):
        one = slice(index, index + 1)
        seed, position = torch.from_numpy(seeds[one].view(np.int64)), torch.from_numpy(positions[one])
        _write_uniform_of_one[(1,)](seed, position, out)
        assert out.tolist() == expected_bits(seeds[one], positions[one])


def test_torch_computes_the_same_bits() -> None:
    seeds, positions = pairs()
    bits = torch_uniform_bits(torch.from_numpy(seeds.view(np.int64)), torch.from_numpy(positions))
    assert bits.tolist() == expected_bits(seeds, positions)
