"""The worker's resident slot state, derived from the stream of plans alone.

Owns what every slot holds: lengths, block table, sampling parameters, token ids. It knows no tensors. The same class is
the shadow worker that property tests replay an engine's plans into.

Invariants: a plan is checked in full before anything changes, so a refused plan leaves no trace; after `apply` the
columns say how things stand once the returned step has run; a decoding slot's last token was sampled by an earlier
step, since only the end of a prefill makes a slot decode, and that row samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pagewire.wire.columns import ROW, Int32Array, row_of
from pagewire.wire.plan import Admit, StepPlan
from pagewire.worker.slots.columns import SlotColumns, SlotLimits
from pagewire.worker.slots.plan_check import CheckedAdmit, CheckedPlan, PlanError, check_plan

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Part of a slot's prefill, computed in one step: positions start … start + len(tokens) - 1."""

    slot: int
    start: int
    tokens: Int32Array
    """A view of the slot's ids: valid until the next plan is applied."""
    ends_prefill: bool
    """The last of these rows samples."""


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """The first rows of a chunk, whose logits say how likely the prompt's next token was."""

    chunk: int
    """Its index among the step's chunks."""
    slot: int
    position: int
    """Where the token stands that the first one scores; the others follow."""
    tokens: Int32Array
    """The tokens scored. A view, valid until the next plan is applied."""


class Step(NamedTuple):
    """The rows of one step, in the plan's order: decoding slots ascending, then chunks as listed."""

    decode_slots: Int32Array
    decode_positions: Int32Array
    """Where each decoding slot's input, its last token, stands in its sequence."""
    chunks: list[Chunk]
    sample_slots: Int32Array
    """Slots that sample: the decoding ones, then those whose prefill ends."""
    sample_positions: Int32Array
    """Where each sampled token will stand in its sequence."""
    number: int
    """Counts the plans that these slots have taken, so that a result that comes in late is not taken for the next
    holder's."""
    admitted: list[int]
    """Slots that hold a new sequence since this plan."""
    special_rows: list[int]
    """Indices, among the rows that sample, of those whose slots are `Slots.special`."""
    scored: list["ScoredRows"]
    """The rows that score, by chunks."""
    grow_slots: Int32Array
    """Slots whose tables got a block, once per block."""
    grow_indices: Int32Array
    """Where in its slot's table each such block stands."""
    grow_blocks: Int32Array

    @property
    def num_rows(self) -> int:
        """Tokens computed in this step."""
        return len(self.decode_slots) + sum(len(chunk.tokens) for chunk in self.chunks)


class Slots:
    """The only writer of slot columns."""

    def __init__(self, limits: SlotLimits) -> None:
        self.limits = limits
        self._columns = SlotColumns.empty(limits)
        self._num_plans = 0
        self._released_by: Int64Array = np.zeros(limits.max_num_seqs, np.int64)
        """The number of the plan that last released each slot."""
        self._epoch: int | None = None
        self._next_step_id = 0
        self._special: dict[int, Admit] = {}
        self.columns = self._columns.read_only()
        """What everyone else may read. Shares memory: it changes with the next `apply` or `begin`."""

    @property
    def special(self) -> Mapping[int, Admit]:
        """Slots whose rows need more than the sampler: controls, penalties, or log-probabilities; each with the
        admission that says what, another object for every holder."""
        return self._special

    def begin(self, epoch: int) -> None:
        """Open an epoch: every slot is empty and step 0 comes next."""
        self._clear()
        self._epoch = epoch

    def end_epoch(self) -> None:
        """Refuse every plan until the next `begin`."""
        self._clear()
        self._epoch = None

    def apply(self, plan: StepPlan) -> Step:
        """Take over what changed and return what to run. Raises PlanError and changes nothing for a wrong plan."""
        if self._epoch is None:
            raise PlanError(f"plan {plan.step_id} of epoch {plan.epoch} came before any Begin")
        if (plan.epoch, plan.step_id) != (self._epoch, self._next_step_id):
            raise PlanError(
                f"plan {plan.step_id} of epoch {plan.epoch} came where plan {self._next_step_id} "
                f"of epoch {self._epoch} was next"
            )
        checked = check_plan(plan, self._columns, self.limits)
        self._num_plans += 1
        if len(checked.release):
            self._release(checked.release)
        for checked_admit in checked.admits:
            self._admit(checked_admit)
        if len(checked.grow_slots):
            self._grow(checked)
        self._next_step_id += 1
        return self._advance(checked)

    def record(self, step: Step, tokens: Int32Array) -> None:
        """Keep what a step sampled, a token (or NO_TOKEN, which stands for id 0) per row that samples, with the
        sequences that still have their slots."""
        slots, positions = step.sample_slots, step.sample_positions
        if step.number != self._num_plans:
            live = self._released_by[slots] <= step.number
            slots, positions, tokens = slots[live], positions[live], tokens[live]
        self._columns.token_ids[slots.astype(np.intp), positions.astype(np.intp)] = np.maximum(tokens, 0)

    def _clear(self) -> None:
        self._num_plans += 1
        self._release(np.flatnonzero(self._columns.occupied).astype(np.int32))
        self._next_step_id = 0

    def _release(self, slots: Int32Array) -> None:
        columns = self._columns
        for slot in slots.tolist():
            num_blocks = columns.num_blocks[slot]
            columns.references[columns.block_tables[slot, :num_blocks]] -= 1
            columns.block_tables[slot, :num_blocks] = 0
            columns.token_ids[slot] = 0
            self._special.pop(slot, None)
        columns.occupied[slots] = False
        self._released_by[slots] = self._num_plans
        columns.num_tokens[slots] = 0
        columns.prompt_len[slots] = 0
        columns.scores_prompt[slots] = False
        columns.num_computed[slots] = 0
        columns.cached_len[slots] = 0
        columns.num_blocks[slots] = 0
        columns.sampling[slots] = np.zeros((), ROW)

    def _admit(self, checked: CheckedAdmit) -> None:
        columns = self._columns
        admit, blocks, slot = checked.admit, checked.blocks, checked.admit.slot
        columns.occupied[slot] = True
        num_tokens = len(checked.tokens)
        columns.num_tokens[slot] = num_tokens
        columns.prompt_len[slot] = admit.prompt_len
        columns.token_ids[slot, :num_tokens] = checked.tokens
        columns.scores_prompt[slot] = admit.prompt_logprobs is not None
        columns.num_computed[slot] = checked.start
        columns.cached_len[slot] = admit.num_cached
        columns.num_blocks[slot] = len(blocks)
        columns.block_tables[slot, : len(blocks)] = blocks
        columns.references[blocks] += 1
        columns.sampling[slot] = row_of(admit.sampling)
        if admit.needs_more_than_sampler:
            self._special[slot] = admit

    def _grow(self, checked: CheckedPlan) -> None:
        columns = self._columns
        columns.block_tables[checked.grow_slots, checked.grow_indices] = checked.grow_blocks
        np.add.at(columns.num_blocks, checked.grow_slots, 1)
        columns.references[checked.grow_blocks] += 1

    def _advance(self, checked: CheckedPlan) -> Step:
        num_computed = self._columns.num_computed
        decode_positions = num_computed[checked.decode_slots]
        next_positions = decode_positions + 1
        num_computed[checked.decode_slots] = next_positions
        decode_slots = checked.decode_slots.astype(np.int32)
        chunks: list[Chunk] = []
        sample_slots, sample_positions = decode_slots, next_positions
        if checked.chunk_slots:
            chunks = [
                self._take_chunk(slot, size)
                for slot, size in zip(checked.chunk_slots, checked.chunk_sizes, strict=True)
            ]
            ended = np.asarray([chunk.slot for chunk in chunks if chunk.ends_prefill], np.int32)
            sample_slots = np.concatenate([decode_slots, ended])
            sample_positions = np.concatenate([next_positions, num_computed[ended]])
        return Step(
            decode_slots=decode_slots,
            decode_positions=decode_positions,
            chunks=chunks,
            sample_slots=sample_slots,
            sample_positions=sample_positions,
            number=self._num_plans,
            admitted=[checked_admit.admit.slot for checked_admit in checked.admits],
            special_rows=self._special_rows(sample_slots) if self._special else [],
            scored=self._scored(chunks) if self._special and chunks else [],
            grow_slots=checked.grow_slots,
            grow_indices=checked.grow_indices,
            grow_blocks=checked.grow_blocks,
        )

    def _take_chunk(self, slot: int, size: int) -> Chunk:
        start = int(self._columns.num_computed[slot])
        self._columns.num_computed[slot] = start + size
        tokens = self.columns.token_ids[slot, start : start + size]
        return Chunk(slot, start, tokens, ends_prefill=start + size == self._columns.num_tokens[slot])

    def _special_rows(self, sample_slots: Int32Array) -> list[int]:
        return [row for row, slot in enumerate(sample_slots.tolist()) if slot in self._special]

    def _scored(self, chunks: list[Chunk]) -> list[ScoredRows]:
        scored = []
        for index, chunk in enumerate(chunks):
            if not self._columns.scores_prompt[chunk.slot]:
                continue
            position = chunk.start + 1
            end = min(position + len(chunk.tokens), int(self._columns.prompt_len[chunk.slot]))
            if position < end:
                tokens = self.columns.token_ids[chunk.slot, position:end]
                scored.append(ScoredRows(index, chunk.slot, position, tokens))
        return scored
