"""The CPU's runner of steps: slot state, batch, forward pass, sampling, and the token's way into the next step.

What a step samples is recorded in the slots before `run` returns, and the next step's batch reads it there, so that a
plan made before this step's tokens were known can run at once. It decides nothing, and knows neither sockets nor where
its model came from.
"""

import logging
from typing import Protocol

import numpy as np
import torch

from pagewire.wire.model import ModelSpec
from pagewire.wire.plan import StepPlan
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.cpu.batch_builder import BatchBuilder
from pagewire.worker.grammar.constrained_rows import ConstrainedRows
from pagewire.worker.immediate import Sampled
from pagewire.worker.sampling.sampler import Sampler
from pagewire.worker.sampling.special_rows import SpecialRows, TokenSampler
from pagewire.worker.slots.columns import SlotLimits
from pagewire.worker.slots.state import Slots

_log = logging.getLogger(__name__)


class Model(Protocol):
    """What the runner needs of a decoder."""

    def forward(self, batch: Batch, kv: KVCache) -> torch.Tensor:
        """Writes the batch's KV and returns logits_SV, float32 or bfloat16."""


class CpuRunner:
    """Executes plans one after the other; a `pagewire.worker.immediate.PlanRunner`."""

    def __init__(
        self,
        model: Model,
        kv: KVCache,
        limits: SlotLimits,
        sampler: TokenSampler | None = None,
        spec: ModelSpec | None = None,
    ) -> None:
        """Without `sampler`, torch and numpy draw; without `spec`, whose tokenizer grammars need, no plan has one."""
        self._model = model
        self._kv = kv
        self._slots = Slots(limits)
        self._builder = BatchBuilder(self._slots.columns, limits)
        self._sampler: TokenSampler = sampler or Sampler(limits.vocab_size)
        self._special_rows = SpecialRows(self._slots, self._sampler, limits.vocab_size, _log_error)
        self._constrained = None if spec is None else ConstrainedRows(self._slots, spec, _log_error)

    def begin(self, epoch: int) -> None:
        """Open an epoch: every slot is empty. What the KV cache holds no longer means anything."""
        self._slots.begin(epoch)

    def end_epoch(self) -> None:
        """Refuse every plan until the next `begin`."""
        self._slots.end_epoch()

    def run(self, plan: StepPlan) -> Sampled:
        """What the plan's step gave. Raises PlanError, before anything is touched, for a
        wrong plan; whatever else the model raises leaves the slots ahead of the KV cache, so it is final."""
        step = self._slots.apply(plan)
        if step.num_rows == 0:
            return Sampled(np.empty(0, np.int32))
        masks = self._constrained.begin(step) if step.special_rows and self._constrained is not None else None
        logits_SV = self._model.forward(self._builder.build(step), self._kv)
        if step.special_rows or step.scored:
            sampled = self._special_rows.sample(step, logits_SV, None if masks is None else masks.result())
        elif len(step.sample_slots) == 0:
            return Sampled(np.empty(0, np.int32))
        else:
            rows = self._slots.columns.sampling[step.sample_slots]
            sampled = Sampled(self._sampler.sample(logits_SV, rows, step.sample_positions))
        self._slots.record(step, sampled.tokens)
        return sampled


def _log_error(what: str, error: Exception) -> None:
    _log.error("%s failed its sequence", what, exc_info=error)
