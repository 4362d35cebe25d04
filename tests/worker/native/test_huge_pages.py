"""Memory in huge pages: where it lies, what it holds, when it is committed."""

import mmap
from itertools import pairwise
from pathlib import Path

import torch

from pagewire.worker.native.memory import HugePages

MB = 1 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_pieces_are_zeros_apart_and_aligned() -> None:
    memory = HugePages()
    pieces = [memory.take(size) for size in (1, 63, 64, 100_000, 5 * MB, 40 * MB, 3, 4 * MB, 31 * MB)]
    assert all(piece.data_ptr() % 64 == 0 and not piece[:100].any() for piece in pieces)
    assert [piece.numel() for piece in pieces] == [1, 63, 64, 100_000, 5 * MB, 40 * MB, 3, 4 * MB, 31 * MB]
    ranges = sorted((piece.data_ptr(), piece.data_ptr() + piece.numel()) for piece in pieces)
    assert all(end <= start for (_, end), (start, _) in pairwise(ranges))


def test_memory_is_taken_from_the_system_when_it_is_committed() -> None:
    memory = HugePages()
    piece = memory.take(64 * MB)
    before = resident_bytes()
    memory.commit()
    assert resident_bytes() - before > 60 * MB
    assert not torch.any(piece)
