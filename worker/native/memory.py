"""Memory for the native library: huge pages for weights and KV, buffers that grow for results, and codes of dtypes.

A stream through pages of 4 KB pays for a page walk every 64 lines. Two Zen 4 cores read 28 GB/s so and 36 from pages of
2 MB; decoding attention over blocks in any order took 103 ms a step and 75 (32 sequences of Qwen3-0.6B's shape, 270
tokens each).
"""

import ctypes
import mmap
import os
import threading

import torch

from pagewire.worker.native.library import BFLOAT16, FLOAT32

_MADV_POPULATE_WRITE = 23
"""Linux 5.14; Python 3.11 has no name for it."""


class HugePages:
    """Never gives memory back before it is gone itself. `take` may be called from several threads."""

    _PAGE = 2 << 20
    _CHUNK = 32 << 20

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._mapped: list[torch.Tensor] = []

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
        mapped = whole[start : start + num_bytes]
        self._mapped.append(mapped)
        return mapped

    def commit(self) -> None:
        """Has the system give every page now, and returns when it has, or when it does not do that or has no more.

        The first write to a page waits until the system has cleared it, 3 ms for 2 MB in a virtual machine whose host
        hands out memory late: 2.3 of the 28 seconds in which 32 requests met a new cache.
        """
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for mapped in self._mapped:
            for start in range(0, mapped.nbytes, self._PAGE):
                size = min(self._PAGE, mapped.nbytes - start)
                size -= size % mmap.PAGESIZE
                if size and madvise(mapped.data_ptr() + start, size, _MADV_POPULATE_WRITE):
                    return

    def commit_when_idle(self) -> None:
        """`commit` on a thread of its own that runs when a core has nothing else to do."""

        def run() -> None:
            if hasattr(os, "SCHED_IDLE"):
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            self.commit()

        threading.Thread(target=run, name="commit", daemon=True).start()


def dtype_code(dtype: torch.dtype) -> int:
    """The library's number for a dtype. Raises ValueError for those it has no kernels for."""
    match dtype:
        case torch.float32:
            return FLOAT32
        case torch.bfloat16:
            return BFLOAT16
    raise ValueError(f"dtype is {dtype}; the native kernels take float32 and bfloat16")


class Buffer:
    """A matrix of rows, grown to the largest yet asked for. A view that was taken stays whole when it grows."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._memory = torch.empty(0, dtype=dtype)

    def take(self, num_rows: int, width: int) -> torch.Tensor:
        """[num_rows, width], contiguous, of no particular content; valid until the next call."""
        num_values = num_rows * width
        if self._memory.numel() < num_values:
            self._memory = torch.empty(num_values, dtype=self._memory.dtype)
        return self._memory[:num_values].view(num_rows, width)
