"""A device's memory: how it is divided, where it went, and what the device says about it.

    device ─┬─ before the model: driver, context, libraries, other processes
            ├─ weights
            ├─ buffers: slots, inputs, kernels' workspaces; allocated once
            ├─ activations: what the worst step allocates and frees, as profiled
            ├─ graphs: what captures allocate, estimated from two of them before there is a cache
            ├─ KV cache: what is left below the utilization
            └─ free

The budget is pure arithmetic on byte counts; `pagewire.worker.cuda.bring_up` measures them by a meter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from pagewire.wire.plan import DeviceMemory

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """What is known before the KV cache is allocated. Bytes."""

    device: int
    """All of the device's memory."""
    before_model: int
    """In use when the worker began, by whomever."""
    weights: int
    buffers: int
    activations: int
    """Freed again, but needed in every step."""
    graphs: int
    """An estimate."""
    free: int
    """Now, with neither activations nor graphs allocated."""


def kv_budget(use: MemoryUse, utilization: float) -> int:
    """Bytes for the KV cache, so that the device's memory is used to `utilization` (0 … 1) in a worst step. What other
    processes hold counts as used. Negative where there is no room."""
    return use.free - (use.device - int(use.device * utilization)) - use.activations - use.graphs


def describe_budget(use: MemoryUse, utilization: float) -> str:
    """The same sum in words, for an error: what is left is not enough, and why."""
    return (
        f"gpu_memory_utilization {utilization} of {_gib(use.device)}, which leaves {_gib(kv_budget(use, utilization))} "
        f"beside {_gib(use.before_model)} in use before the model, {_gib(use.weights)} of weights, "
        f"{_gib(use.buffers)} of buffers, {_gib(use.activations)} of activations and {_gib(use.graphs)} of graphs,"
    )


def estimated_graph_bytes(first: int, second: int, num_graphs: int) -> int:
    """What num_graphs captures take, where the largest took `first` bytes and the next `second`: later ones find
    their memory in the pool and take no more than the second's own. Counts are what the driver's free memory shrank
    by, so one may be negative where something else was freed meanwhile."""
    return max(0, first) + max(0, second) * max(0, num_graphs - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """Where every byte of a device went, once the worker is ready."""

    device: int
    before_model: int
    weights: int
    buffers: int
    activations: int
    graphs: int
    """As measured."""
    kv_cache: int
    free: int
    """As the driver says. Activations are allocated again from it."""

    def lines(self) -> list[str]:
        """What the log says of it."""
        parts = {
            "before the model": self.before_model,
            "weights": self.weights,
            "buffers": self.buffers,
            "activations of the worst step": self.activations,
            "graphs": self.graphs,
            "KV cache": self.kv_cache,
            "free": self.free - self.activations,
        }
        return [f"device memory: {_gib(self.device)}", *(f"  {_gib(size)} {name}" for name, size in parts.items())]

    def for_engine(self) -> DeviceMemory:
        """What GetServerInfo shows beside weights and KV cache."""
        return DeviceMemory(
            total_bytes=self.device,
            before_model_bytes=self.before_model,
            buffer_bytes=self.buffers,
            activation_bytes=self.activations,
            graph_bytes=self.graphs,
            free_bytes=self.free,
        )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"


class MemoryMeter(Protocol):
    """What a device says about its memory. Bytes."""

    def total(self) -> int:
        """All of the device's memory."""

    def free(self) -> int:
        """What the driver could still give, after everything that is only kept for reuse has been given back to it."""

    def allocated(self) -> int:
        """In tensors of this process."""

    def peak(self, work: Callable[[], None]) -> int:
        """The most that `work` takes beyond what is allocated before it."""


class CudaMeter:
    """`pagewire.worker.cuda.memory.MemoryMeter` by the driver's and torch's counts."""

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
