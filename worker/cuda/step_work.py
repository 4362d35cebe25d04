"""The work of a step on a device: prepare the inputs, run the model, sample, update the slots.

    packed plan ─▶ prepare ─▶ model ─▶ LM head ─▶ sampler ─▶ tokens ─▶ last tokens, lengths
                      ▲                                                       │
                      └──────────────── slots, resident ◀─────────────────────┘

All of it is launched without reading anything back, so that it can be captured for a shape and launched as one. It
knows neither plans nor when anything is done, nor what `pagewire.worker.cuda.special_work` does to some rows after it.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch

from pagewire.wire.logits import MAX_SCORED_ROWS
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.cuda.plan_packer import packed_capacity
from pagewire.worker.cuda.slot_state import SlotLayout
from pagewire.worker.cuda.step_buffers import StepBuffers, StepShape
from pagewire.worker.kernels.contract import Kernels, SlotTensors
from pagewire.worker.kernels.controls import ControlLayout
from pagewire.worker.kernels.workspaces import MAX_CHANGED_ROWS, ChangedRows, LogprobsWorkspace, SamplingWorkspace
from pagewire.worker.slots.columns import SlotLimits


class Model(Protocol):
    """What a step needs of a decoder."""

    def forward(self, batch: Batch, kv: KVCache) -> torch.Tensor:
        """Writes the batch's KV and returns logits_SV."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMemory:
    """Everything on the device that steps work in, besides the model's own and the KV cache."""

    slots: SlotTensors
    buffers: StepBuffers
    sampling: SamplingWorkspace
    changed: ChangedRows
    logprobs: LogprobsWorkspace

    @classmethod
    def allocate(cls, limits: SlotLimits, device: torch.device) -> "StepMemory":
        """For the largest step that the limits allow; the number of blocks does not matter. Raises ValueError for a
        vocabulary that the sampler does not take."""
        return cls(
            slots=SlotLayout.of(limits).allocate(device),
            buffers=StepBuffers(limits, packed_capacity(limits), device),
            sampling=SamplingWorkspace.allocate(limits.max_num_seqs, limits.vocab_size, device),
            changed=ChangedRows.allocate(
                min(MAX_CHANGED_ROWS, limits.max_num_seqs),
                limits.max_num_seqs,
                ControlLayout(limits.vocab_size, limits.max_model_len),
                device,
            ),
            logprobs=LogprobsWorkspace.allocate(MAX_SCORED_ROWS, limits.vocab_size, device),
        )


@dataclass(frozen=True, slots=True)
class LogitRows:
    """Which of a step's rows give logits, where some score a prompt besides those that sample. On the device."""

    rows_L: torch.Tensor
    """int64: of the batch, ascending."""
    sampled_S: torch.Tensor
    """int64: which of them sample, in the order of the samples."""


@dataclass(frozen=True, slots=True)
class StepLogits:
    """What a step's model gave. Valid until the next step."""

    sampled_SV: torch.Tensor
    """A step that was padded has more rows than sample."""
    all_LV: torch.Tensor
    """The same, where no row scores."""


class StepWork:
    """The work of steps of any shape, over one set of buffers."""

    def __init__(
        self,
        *,
        model: Model,
        kernels: Kernels,
        kv: KVCache,
        memory: StepMemory,
    ) -> None:
        self._model = model
        self._kernels = kernels
        self._kv = kv
        self._slots = memory.slots
        self._buffers = memory.buffers
        self._workspace = memory.sampling

    def apply_changes(self, first: int, num_changes: int) -> None:
        """Bring the packed plan's changes, which start at word `first`, into the slots."""
        packed = self._buffers.packed
        middle, last = first + num_changes, first + 2 * num_changes
        self._kernels.apply_changes(self._slots, packed[first:middle], packed[middle:last])

    @torch.inference_mode()
    def run(self, shape: StepShape, rows: LogitRows | None = None) -> StepLogits:
        """One step of the packed plan; its tokens go to the buffers' `tokens_S`. With `rows`, these give logits; else
        those that sample."""
        buffers = self._buffers
        step = buffers.tensors(shape)
        seqs_BQ = buffers.seqs_BQ(shape.num_seqs)
        tokens_S = buffers.tokens_S[: shape.num_samples]
        self._kernels.prepare_step(
            self._slots,
            seqs_BQ,
            buffers.packed[seqs_BQ.numel() :],
            step,
            block_size=self._kv.block_size,
            max_rows=shape.max_rows,
        )
        batch = buffers.batch(step, shape)
        if rows is not None:
            batch = replace(batch, sample_rows_S=rows.rows_L)
        logits_LV = self._model.forward(batch, self._kv)
        logits_SV = logits_LV if rows is None else logits_LV.index_select(0, rows.sampled_S)
        if shape.num_samples:
            self._kernels.sample(
                logits_SV,
                step.sampling_SP,
                step.sample_positions_S,
                tokens_S,
                workspace=self._workspace,
            )
        self._kernels.finish_step(self._slots, seqs_BQ, tokens_S)
        return StepLogits(logits_SV, logits_LV)
