"""The kernels' contract: what one set of kernels computes, each by its name and signature, whoever computes it.

A device gets one set, chosen when it comes up. `pagewire.worker.kernels.reference` defines in torch what each kernel
results in and says what its tensors hold; `pagewire.worker.kernels.triton` computes the same on CUDA devices. Kernels
write into tensors that they are given, and work in memory that is allocated once, so that what launches them can be
captured.

Slot state and one step's inputs are kept where the device keeps them. The step kernels (`apply_changes`,
`prepare_step`, `finish_step`) are their only writers, from what `pagewire.worker.cuda.plan_packer` packs.

Shape suffixes as in `pagewire.worker.attention.base`, besides G = 2F, gate's outputs and then up's; R, the slots; and
Q, the fields that describe a sequence's part in a step:

    field   0     slot; -1 for a row that only pads the batch, which reads and writes no slot and no block
            1     its first row in the step
            2     its number of rows; 1 for a padding row
            3     where its token ids start in the plan's list of ids; -1: its input is the slot's last token
            4     which row of logits it samples from; -1: none

And C, the rows whose logits are changed before a token is drawn, with F, the fields that describe one:

    field   0     its index among the rows that sample
            1     its slot; -1 for a row that leaves no trace
            2     the position that its token takes
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from pagewire.wire.columns import first_word
from pagewire.wire.sampling import PARAMETERS
from pagewire.worker.kernels.workspaces import ChangedRows, DecodeWorkspace, LogprobsWorkspace, SamplingWorkspace

Tensor = torch.Tensor

MAX_SKINNY_ROWS = 4
"""Most rows of the linears that are kernels of their own: a decode step of so many waits for weights alone, whose
products fit beside the loads, without tensor cores."""

MASS_BITS = 42
"""Sampling weighs ids by integers of at most 2^42; 2^20 of them fit 63 bits."""
DRAW_BITS = 24
"""Of a uniform draw."""
P_BITS = 31
"""Of top-p, below the point."""
LOG2_E = 1 / math.log(2)
MAX_RATE = torch.finfo(torch.float32).max
"""What a rate is limited to: of the least temperatures it would be infinite, and the largest logit's weight NaN."""

SEQ_FIELDS = 5
PADDING_SLOT = -1

_TORCH_DTYPES = {"<f4": torch.float32, "<i4": torch.int32, "<u8": torch.int64}


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotTensors:
    """What every slot holds. All fields are views of `arena`, so that one scatter of words changes any of them."""

    arena: torch.Tensor
    """int32 [words]."""
    sampling_RP: torch.Tensor
    """int32 [R, ROW_WORDS]: rows of `pagewire.wire.columns.ROW`."""
    last_token_R: torch.Tensor
    """int32: the next input of a slot that decodes."""
    length_R: torch.Tensor
    """int32: positions whose KV is there; the next one to compute."""
    cached_len_R: torch.Tensor
    """int32: KV is written at this position and after, never below."""
    block_tables_RM: torch.Tensor
    """int32: ids of a slot's blocks; what stands past them is the id of some block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTensors:
    """One step's inputs, as the model and the sampler take them; see `pagewire.worker.attention.base.Batch`."""

    input_ids_T: torch.Tensor
    """int64."""
    positions_T: torch.Tensor
    """int64."""
    kv_positions_T: torch.Tensor
    """int64: -1 for a row whose KV is not written."""
    query_starts: torch.Tensor
    """int32 [B + 1]; the first is always 0."""
    context_lens_B: torch.Tensor
    """int32: 0 for a padding row."""
    block_tables_BM: torch.Tensor
    """int32: zero past the blocks of each context."""
    sample_rows_S: torch.Tensor
    """int64."""
    sampling_SP: torch.Tensor
    """int32 [S, ROW_WORDS]: rows of `pagewire.wire.columns.ROW`; all zero, which is greedy, for a padding row."""
    sample_positions_S: torch.Tensor
    """int64: where each sampled token will stand in its sequence."""


def parameter_S(sampling_SP: torch.Tensor, name: str) -> torch.Tensor:
    """A sampling parameter of each row of `pagewire.wire.columns.ROW`, as a view; of a seed the 64 bits as int64."""
    dtype = _TORCH_DTYPES[PARAMETERS[name].dtype]
    return sampling_SP.view(dtype)[:, first_word(name) * 4 // dtype.itemsize]


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


class Process(Protocol):
    """See `pagewire.worker.kernels.reference.processors.process`."""

    def __call__(
        self, logits_SV: Tensor, changed_CF: Tensor, slots: SlotTensors, rows: ChangedRows, *, has_masks: bool
    ) -> None: ...


class Logprobs(Protocol):
    """See `pagewire.worker.kernels.reference.logprobs.logprobs`."""

    def __call__(
        self,
        logits_LV: Tensor,
        rows_S: Tensor,
        tokens_S: Tensor,
        named_SM: Tensor,
        out_chosen_S: Tensor,
        out_named_SM: Tensor,
        out_top_ids_SN: Tensor,
        out_top_SN: Tensor,
        *,
        workspace: LogprobsWorkspace,
    ) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """One set, by which a device computes everything but the products of many rows."""

    name: str
    """For reports."""

    is_exact: bool = False
    """Whether a row's results follow to the bit from its own history alone, whatever is computed beside it. `linear`
    then takes any number of rows, and `paged_decode` a workspace of partitions."""

    start_rms_norm: Callable[[Tensor, Tensor, Tensor, float, Tensor], None]
    """(rows_TE, x_TE, scaled_weight_E, squared_floor, out_TE): x = rows; out = x normalized."""
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float, Tensor], None]
    """(x_TE, delta_TE, scaled_weight_E, squared_floor, out_TE): x += delta; out = x normalized."""
    rotate_and_store: Callable[[Tensor, Tensor | None, float, Tensor, Tensor, Tensor, Tensor], None]
    """(qkv, qk_weight_JD, squared_floor, cos_sin_PD, positions_T, kv_positions_T, kv_layer): q turned in place, k and v
    to the cache."""
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

    process: Process
    finish_changed: Callable[[Tensor, Tensor, Tensor, SlotTensors, ChangedRows], None]
    """(changed_CF, tokens_C, tokens_S, slots, rows), after `finish_step`."""
    logprobs: Logprobs
