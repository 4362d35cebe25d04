"""The platform: a device as CUDA gives it to a worker, kernels for it, and its memory, order of work and graphs.

Besides `memory`, `timeline` and `graphs` the only module that calls CUDA's own functions; a stand-in for it runs all
the rest on a CPU.
"""

import importlib
from collections.abc import Sequence
from typing import Protocol

import torch

from pagewire.wire.launch import AttentionBackendName
from pagewire.worker.attention.base import AttentionBackend
from pagewire.worker.attention.choice import AttentionNeeds, CudaCard, attention_candidates, choose_attention
from pagewire.worker.cuda.graphs import CudaGraphCapture, GraphCapture
from pagewire.worker.cuda.memory import CudaMeter, MemoryMeter
from pagewire.worker.cuda.timeline import CudaTimeline, Timeline
from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.kernels.sets import exact_kernels, triton_kernels


class CudaUnavailable(Exception):
    """This machine or installation cannot run on a CUDA device; the message says why."""


class Platform(Protocol):
    """A device, made the current one, and what drives it."""

    @property
    def device(self) -> torch.device:
        """Where tensors belong."""

    @property
    def meter(self) -> MemoryMeter:
        """What the device says about its memory."""

    @property
    def timeline(self) -> Timeline:
        """The order of its work."""

    def new_capture(self) -> GraphCapture:
        """Captures graphs that share memory."""

    def kernels(self, *, exact: bool = False) -> Sequence[Kernels]:
        """Sets that this device should run, best first; whatever a trial finds, the last one runs. `exact`: those whose
        results do not depend on what is computed together, of which one must pass its trial. Raises CudaUnavailable."""

    def attention(self, wanted: AttentionBackendName, needs: AttentionNeeds) -> AttentionBackend:
        """Raises AttentionUnavailable."""


class CudaPlatform:
    """One of NVIDIA's devices, with Triton's kernels."""

    def __init__(self, local_rank: int = 0) -> None:
        """For this host's rank of that number: the ranks take its devices in turn. Raises CudaUnavailable."""
        if not torch.cuda.is_available():
            reason = "is built without CUDA" if torch.version.cuda is None else "finds no CUDA device"
            raise CudaUnavailable(f"device cuda: torch {torch.__version__} {reason}")
        self.device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(self.device)
        self.meter = CudaMeter(self.device)
        self.timeline = CudaTimeline(self.device)

    def new_capture(self) -> GraphCapture:
        return CudaGraphCapture(self.device)

    def kernels(self, *, exact: bool = False) -> Sequence[Kernels]:
        can_overlap = torch.cuda.get_device_capability(self.device) >= (9, 0)
        make = exact_kernels if exact else triton_kernels
        try:
            return [make(overlap=overlap) for overlap in (True, False) if can_overlap or not overlap]
        except ImportError as error:
            raise CudaUnavailable(f"device cuda needs Triton ({error}): pip install 'pagewire[cuda]'") from error

    def attention(self, wanted: AttentionBackendName, needs: AttentionNeeds) -> AttentionBackend:
        card = CudaCard.of(needs.device)
        return choose_attention(attention_candidates(card, importlib.import_module), wanted, needs, card)
