"""What a CUDA device says about its memory."""

from collections.abc import Callable

import torch


class CudaMeter:
    """`pagewire.worker.cuda.bring_up.MemoryMeter` by the driver's and torch's counts."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def total(self) -> int:
        return self._driver()[1]

    def free(self) -> int:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        return self._driver()[0]

    def allocated(self) -> int:
        return torch.cuda.memory_allocated(self._device)

    def peak(self, work: Callable[[], None]) -> int:
        """In the segments that torch reserves, which are larger than the tensors in them."""
        self.free()
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_reserved(self._device)
        work()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_reserved(self._device) - before

    def _driver(self) -> tuple[int, int]:
        free_bytes, total_bytes = torch.cuda.mem_get_info(self._device)
        return free_bytes, total_bytes
