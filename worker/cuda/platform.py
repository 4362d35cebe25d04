"""What CUDA gives a worker: a device, kernels for it, and its memory, order of work and graphs.

The only module besides `meter`, `timeline` and `recorder` that calls CUDA's own functions; a stand-in for it runs all
the rest on a CPU.
"""

import importlib
from collections.abc import Sequence
from typing import Protocol

import torch

from pagewire.wire.launch import AttentionBackendName
from pagewire.worker.attention.base import AttentionBackend
from pagewire.worker.attention.choice import AttentionNeeds, CudaCard, attention_ladder, choose_attention
from pagewire.worker.cuda.bring_up import DeviceKit
from pagewire.worker.cuda.graphs import CudaGraphRecorder
from pagewire.worker.cuda.kernel_ops import OpsKernels, triton_ops_kernels
from pagewire.worker.cuda.memory import CudaMeter
from pagewire.worker.cuda.step_work import StepKernels
from pagewire.worker.cuda.timeline import CudaTimeline
from pagewire.worker.linears.skinny import FewRowsKernels, triton_few_rows_kernels


class CudaUnavailable(Exception):
    """This machine or installation cannot run on a CUDA device; the message says why."""


class Platform(Protocol):
    """A kind of device."""

    def kit(self, local_rank: int) -> DeviceKit:
        """The device of this host's rank of that number, made the current one, and what drives it. Raises
        CudaUnavailable."""

    def ops_kernels(self, overlap: bool) -> OpsKernels:
        """What computes between the linears; `overlap`: they may start before the kernel before them is over. Raises
        CudaUnavailable."""

    def few_rows_kernels(self, device: torch.device) -> Sequence[FewRowsKernels]:
        """For the linears of a few rows: what this device should run, best first. Raises CudaUnavailable."""

    def attention(self, wanted: AttentionBackendName, needs: AttentionNeeds) -> AttentionBackend:
        """Raises AttentionUnavailable."""


class CudaPlatform:
    """NVIDIA's devices, with Triton's kernels."""

    def kit(self, local_rank: int) -> DeviceKit:
        """The ranks of a host take its devices in turn."""
        if not torch.cuda.is_available():
            reason = "is built without CUDA" if torch.version.cuda is None else "finds no CUDA device"
            raise CudaUnavailable(f"device cuda: torch {torch.__version__} {reason}")
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        try:
            from pagewire.worker.kernels.triton import step_state
            from pagewire.worker.kernels.triton.sampling import sample
        except ImportError as error:
            raise _without_triton(error) from error
        return DeviceKit(
            device=device,
            kernels=StepKernels(state=step_state, sample=sample),
            meter=CudaMeter(device),
            timeline=CudaTimeline(device),
            new_recorder=lambda: CudaGraphRecorder(device),
        )

    def ops_kernels(self, overlap: bool) -> OpsKernels:
        try:
            return triton_ops_kernels(overlap=overlap)
        except ImportError as error:
            raise _without_triton(error) from error

    def few_rows_kernels(self, device: torch.device) -> Sequence[FewRowsKernels]:
        can_overlap = torch.cuda.get_device_capability(device) >= (9, 0)
        try:
            return [triton_few_rows_kernels(overlap=overlap) for overlap in (True, False) if can_overlap or not overlap]
        except ImportError as error:
            raise _without_triton(error) from error

    def attention(self, wanted: AttentionBackendName, needs: AttentionNeeds) -> AttentionBackend:
        card = CudaCard.of(needs.device)
        return choose_attention(attention_ladder(card, importlib.import_module), wanted, needs, card)


def _without_triton(error: ImportError) -> CudaUnavailable:
    return CudaUnavailable(f"device cuda needs Triton ({error}): pip install 'pagewire[cuda]'")
