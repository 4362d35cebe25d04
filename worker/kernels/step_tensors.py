"""Slot state and one step's inputs where a device keeps them: the tensors that the step kernels read and write.

Holds data and nothing else. `pagewire.worker.kernels.triton.step_state` and
`pagewire.worker.kernels.reference.step_state` are the only writers, from what `pagewire.worker.cuda.plan_packer` packs.

Shape suffixes as in `pagewire.worker.attention.base`, besides R, the slots, and Q, the fields that describe a
sequence's part in a step:

    field   0     slot; -1 for a row that only pads the batch, which reads and writes no slot and no block
            1     its first row in the step
            2     its number of rows; 1 for a padding row
            3     where its token ids start in the plan's list of ids; -1: its input is the slot's last token
            4     which row of logits it samples from; -1: none
"""

from dataclasses import dataclass

import torch

SEQ_FIELDS = 5
PADDING_SLOT = -1


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
    write_floor_R: torch.Tensor
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
    write_slots_T: torch.Tensor
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
