"""Memory for weights and KV: large, taken once, in huge pages where the system has them.

A stream through pages of 4 KB pays for a page walk every 64 lines. Two Zen 4 cores read 28 GB/s so and 36 from pages of
2 MB; decoding attention over blocks in any order took 103 ms a step and 75 (32 sequences of Qwen3-0.6B's shape, 270
tokens each).
"""

import mmap
import threading

import torch


class HugePages:
    """Never gives memory back before it is gone itself. May be called from several threads."""

    _PAGE = 2 << 20
    _CHUNK = 32 << 20

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunk = torch.empty(0, dtype=torch.uint8)

    def take(self, num_bytes: int) -> torch.Tensor:
        """uint8 [num_bytes], zeros, at the start of a cache line; committed when it is first written."""
        rounded = -(-num_bytes // 64) * 64
        with self._lock:
            if rounded > self._chunk.numel():
                if rounded > self._CHUNK // 8:
                    return self._map(rounded)[:num_bytes]
                self._chunk = self._map(self._CHUNK)
            taken, self._chunk = self._chunk[:num_bytes], self._chunk[rounded:]
        return taken

    def _map(self, num_bytes: int) -> torch.Tensor:
        memory = mmap.mmap(-1, num_bytes + self._PAGE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        start = -whole.data_ptr() % self._PAGE
        return whole[start : start + num_bytes]
