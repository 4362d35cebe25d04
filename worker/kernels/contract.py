"""The kernels' contract: what one set of kernels computes, each by its name and signature, whoever computes it.

A device gets one set, chosen when it comes up. `pagewire.worker.kernels.reference` defines in torch what each kernel
results in and says what its tensors hold; `pagewire.worker.kernels.triton` computes the same on CUDA devices. Kernels
write into tensors that they are given, and work in memory that is allocated once, so that what launches them can be
captured. Shape suffixes as in `pagewire.worker.attention.base`; G = 2F, gate's outputs and then up's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from pagewire.worker.kernels.attention_workspace import DecodeWorkspace
from pagewire.worker.kernels.sampling_workspace import SamplingWorkspace
from pagewire.worker.kernels.step_tensors import SlotTensors, StepTensors

Tensor = torch.Tensor

MAX_SKINNY_ROWS = 4
"""Most rows of the linears that are kernels of their own: a decode step of so many waits for weights alone, whose
products fit beside the loads, without tensor cores."""


class PagedDecode(Protocol):
    """See `pagewire.worker.kernels.reference.paged_decode.paged_decode`."""

    def __call__(
        self,
        q_BHD: Tensor,
        kv_layer: Tensor,
        block_tables_BM: Tensor,
        context_lens_B: Tensor,
        out_BHD: Tensor,
        *,
        scale: float,
        workspace: DecodeWorkspace,
    ) -> None: ...


class PagedPrefill(Protocol):
    """See `pagewire.worker.kernels.reference.paged_prefill.paged_prefill`."""

    def __call__(
        self,
        q_THD: Tensor,
        kv_layer: Tensor,
        block_tables_BM: Tensor,
        query_starts: Tensor,
        context_lens_B: Tensor,
        out_THD: Tensor,
        *,
        scale: float,
        max_query_len: int,
    ) -> None: ...


class PrepareStep(Protocol):
    """See `pagewire.worker.kernels.reference.step_state.prepare_step`."""

    def __call__(
        self,
        slots: SlotTensors,
        seqs_BQ: Tensor,
        ids_C: Tensor,
        step: StepTensors,
        *,
        block_size: int,
        max_rows: int,
    ) -> None: ...


class Sample(Protocol):
    """See `pagewire.worker.kernels.reference.sampling.sample`."""

    def __call__(
        self,
        logits_SV: Tensor,
        sampling_SP: Tensor,
        position_S: Tensor,
        out_tokens_S: Tensor,
        *,
        workspace: SamplingWorkspace,
    ) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """One set."""

    name: str
    overlaps: bool
    """Programs start before the kernel before theirs is over."""

    start_rms_norm: Callable[[Tensor, Tensor, Tensor, float, Tensor], None]
    """(rows_TE, x_TE, scaled_weight_E, squared_floor, out_TE): x = rows; out = x normalized."""
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float, Tensor], None]
    """(x_TE, delta_TE, scaled_weight_E, squared_floor, out_TE): x += delta; out = x normalized."""
    rotate_and_store: Callable[[Tensor, Tensor | None, float, Tensor, Tensor, Tensor, Tensor], None]
    """(qkv, qk_weight_JD, squared_floor, cos_sin_PD, positions_T, slots_T, kv_layer): q turned in place, k and v to the
    cache."""
    silu_mul: Callable[[Tensor, Tensor], None]
    """(gate_up, out_TF): out = silu(gate) · up."""

    linear: Callable[[Tensor, Tensor, Tensor | None, Tensor], None]
    """(x_TK, weight_NK, bias_N, out_TN), for at most MAX_SKINNY_ROWS rows, as the next two."""
    add_norm_linear: Callable[[Tensor, Tensor, Tensor, float, Tensor, Tensor | None, Tensor, Tensor], None]
    """(x_TE, delta_TE, scaled_weight_E, squared_floor, weight_NE, bias_N, new_x_TE, out_TN)."""
    add_norm_gate_up: Callable[[Tensor, Tensor, Tensor, float, Tensor, Tensor | None, Tensor, Tensor], None]
    """(x_TE, delta_TE, scaled_weight_E, squared_floor, weight_GE, bias_G, new_x_TE, out_TF)."""

    paged_decode: PagedDecode
    paged_prefill: PagedPrefill

    apply_changes: Callable[[SlotTensors, Tensor, Tensor], None]
    """(slots, indices_C, values_C)."""
    prepare_step: PrepareStep
    sample: Sample
    finish_step: Callable[[SlotTensors, Tensor, Tensor], None]
    """(slots, seqs_BQ, tokens_S)."""
