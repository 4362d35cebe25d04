"""Memory that is handed to the native library: buffers that grow and are reused, huge pages, and
the codes of dtypes."""

import mmap
import threading

import torch

from pagewire.worker.native.library import BFLOAT16, FLOAT32


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


class HugePages:
    """Memory that is taken once and never given back, in pages of 2 MB where the system has them.

    A stream through pages of 4 KB pays for a page walk every 64 lines: two Zen 4 cores read 28 GB/s so, and 36 from
    huge pages. May be called from several threads.
    """

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
