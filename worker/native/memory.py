"""Memory that is handed to the native library: buffers that grow and are reused, and the codes of dtypes."""

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
