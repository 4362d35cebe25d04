"""Special rows on a CPU: those that need more than the sampler, because their sequences ask for logits to be changed or
for log-probabilities.

Stands between logits and sampler, and is asked only about steps that have such rows. One call of the sampler takes all
rows as the model left them, so that the others are neither copied nor looked at; of those that are changed, a copy in
float32 is processed and drawn by the same sampler. Whatever goes wrong with a row ends that row, with a
reason.

What a slot asks for is made ready when its first row comes, and lives as long as the admission that said it.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from pagewire.wire.columns import Float32Array, Int32Array, SamplingRows, pack, unpack
from pagewire.wire.logits import LogprobsRequest
from pagewire.wire.plan import NO_TOKEN, NOTHING_LEFT, Admit, ChunkLogprobs, RowFailure, RowLogprobs
from pagewire.worker.grammar.masks import StepMasks
from pagewire.worker.immediate import Sampled
from pagewire.worker.sampling.logprobs import LogprobsRow
from pagewire.worker.sampling.processors import Processors, take_out
from pagewire.worker.slots.state import ScoredRows, Slots, Step


class TokenSampler(Protocol):
    """What is needed of a sampler; see `pagewire.worker.sampling.sampler.Sampler`."""

    def sample(self, logits_SV: torch.Tensor, rows: SamplingRows, positions: Int32Array) -> Int32Array: ...


class SpecialRows:
    """The stage of one runner. Used between `Slots.apply` and `Slots.record`, when every earlier step is recorded."""

    def __init__(
        self, slots: Slots, sampler: TokenSampler, vocab_size: int, on_error: Callable[[str, Exception], None]
    ) -> None:
        """`on_error` is told what failed a row, for a log."""
        self._slots = slots
        self._sampler = sampler
        self._vocab_size = vocab_size
        self._on_error = on_error
        self._memory_CV = np.zeros((0, vocab_size), np.float32)
        self._ready: dict[int, tuple[Admit, Processors]] = {}
        """By slot. Another admission is another object."""

    def sample(self, step: Step, logits_RV: torch.Tensor, masks: StepMasks | None = None) -> Sampled:
        """`logits_RV` are those of the rows that sample or score, in the order of the batch; `masks` those of rows that
        are constrained."""
        sampled_rows, scored_rows = _rows(step)
        logits_SV = logits_RV if len(sampled_rows) == len(logits_RV) else logits_RV[sampled_rows]
        tokens = np.empty(0, np.int32)
        if len(step.sample_slots):
            rows = self._slots.columns.sampling[step.sample_slots]
            rows["temperature"][self._changed_rows(step)] = 0  # they are drawn below; here it is asked if they can be
            tokens = self._sampler.sample(logits_SV, rows, step.sample_positions)
        failures: dict[int, RowFailure] = {}
        self._forget_ended()
        changed = self._change(step, logits_SV, tokens, masks or StepMasks(), failures)
        logprobs = self._logprobs(step, logits_SV, changed, tokens, failures)
        scores = [
            self._score(scored, logits_RV[first : first + len(scored.tokens)])
            for scored, first in zip(step.scored, scored_rows, strict=True)
        ]
        return Sampled(tokens, [failures[row] for row in sorted(failures)], logprobs, scores)

    def _forget_ended(self) -> None:
        for slot in [slot for slot in self._ready if slot not in self._slots.special]:
            del self._ready[slot]

    def _change(
        self,
        step: Step,
        logits_SV: torch.Tensor,
        tokens: Int32Array,
        masks: StepMasks,
        failures: dict[int, RowFailure],
    ) -> dict[int, Float32Array]:
        """Process what is to be processed and draw it, into `tokens`; row → its logits as they are then, until the next
        step. Rows without a token are left as they are: their logits are no numbers, or their grammar cannot go on."""
        for row, reason in masks.failures.items():
            tokens[row], failures[row] = NO_TOKEN, RowFailure(row, reason, by_request=True)
        rows = [row for row in self._changed_rows(step) if tokens[row] != NO_TOKEN]
        changed: dict[int, Float32Array] = {}
        for row, logits_V in zip(rows, self._room(len(rows)), strict=True):
            logits_V[:] = _row(logits_SV, row)
            slot, length = int(step.sample_slots[row]), int(step.sample_positions[row])
            try:
                self._processors(slot).apply(logits_V, self._slots.columns.token_ids[slot, :length])
                if (mask := masks.masks.get(row)) is not None:
                    take_out(logits_V, mask)
                changed[row] = logits_V
            except Exception as error:
                self._fail(row, tokens, failures, error)
        self._draw(step, rows, tokens, failures)
        for row in [row for row in changed if tokens[row] == NO_TOKEN]:
            if changed.pop(row).max() == -np.inf:
                failures[row] = RowFailure(row, NOTHING_LEFT, by_request=True)
        return changed

    def _room(self, num_rows: int) -> Float32Array:
        """For logits that are changed, [rows, V]; its memory is used again by the next step."""
        if len(self._memory_CV) < num_rows:
            self._memory_CV = np.zeros((num_rows, self._vocab_size), np.float32)
        return self._memory_CV[:num_rows]

    def _draw(self, step: Step, rows: list[int], tokens: Int32Array, failures: dict[int, RowFailure]) -> None:
        """All in one call, so that threads share them; where it raises, each by itself."""
        if not rows:
            return
        logits_CV = torch.from_numpy(self._room(len(rows)))
        asked, positions = self._slots.columns.sampling[step.sample_slots[rows]], step.sample_positions[rows]
        try:
            drawn = self._sampler.sample(logits_CV, asked, positions)
        except Exception:
            drawn = np.full(len(rows), NO_TOKEN, np.int32)
            for index, row in enumerate(rows):
                one = slice(index, index + 1)
                try:
                    drawn[one] = self._sampler.sample(logits_CV[one], asked[one], positions[one])
                except Exception as error:
                    self._fail(row, tokens, failures, error)
        failed = [row in failures for row in rows]
        tokens[rows] = np.where(failed, NO_TOKEN, drawn)

    def _changed_rows(self, step: Step) -> list[int]:
        special = self._slots.special
        return [row for row in step.special_rows if special[int(step.sample_slots[row])].changes_logits]

    def _processors(self, slot: int) -> Processors:
        admit = self._slots.special[slot]
        held = self._ready.get(slot)
        if held is None or held[0] is not admit:
            held = self._ready[slot] = (admit, Processors(admit, self._vocab_size))
        return held[1]

    def _logprobs(
        self,
        step: Step,
        logits_SV: torch.Tensor,
        changed: dict[int, Float32Array],
        tokens: Int32Array,
        failures: dict[int, RowFailure],
    ) -> list[RowLogprobs]:
        found = []
        for row in step.special_rows:
            asked = self._slots.special[int(step.sample_slots[row])].logprobs
            if asked is None or tokens[row] == NO_TOKEN:
                continue
            try:
                logits_V = changed.get(row) if asked.is_processed else None
                found.append(_row_logprobs(row, _row(logits_SV, row) if logits_V is None else logits_V, asked, tokens))
            except Exception as error:
                self._fail(row, tokens, failures, error)
        return found

    def _score(self, scored: ScoredRows, logits_PV: torch.Tensor) -> ChunkLogprobs:
        """One chunk's scores; NaN for a row that is no distribution, and where anything goes wrong."""
        count = self._slots.special[scored.slot].prompt_logprobs or 0
        chosen = np.full(len(scored.tokens), np.nan, np.float32)
        ids = np.full((len(scored.tokens), count), NO_TOKEN, np.int32)
        values = np.full((len(scored.tokens), count), np.nan, np.float32)
        try:
            for index in range(len(scored.tokens)):
                logits_V = _row(logits_PV, index)
                if np.isfinite(logits_V.max()):
                    row = LogprobsRow.of(logits_V)
                    chosen[index] = row.of_ids(scored.tokens[index : index + 1])[0]
                    ids[index], values[index] = row.likeliest(count)
        except Exception as error:
            self._on_error(f"position {scored.position} of a prompt", error)
        return ChunkLogprobs(scored.chunk, scored.position, chosen.tobytes(), pack(ids), values.tobytes())

    def _fail(self, row: int, tokens: Int32Array, failures: dict[int, RowFailure], error: Exception) -> None:
        self._on_error(f"row {row} of a step", error)
        tokens[row] = NO_TOKEN
        failures[row] = RowFailure(row, f"its logits could not be worked on: {type(error).__name__}")


def _row(logits_SV: torch.Tensor, row: int) -> Float32Array:
    """Shares memory where they are float32. bfloat16 is the upper half of a float32; torch's own way would wake its
    threads."""
    if logits_SV.dtype == torch.bfloat16:
        halves: npt.NDArray[np.uint16] = logits_SV[row].view(torch.uint16).numpy()
        return (halves.astype(np.uint32) << 16).view(np.float32)
    logits_V: Float32Array = logits_SV[row].numpy()
    return logits_V


def _row_logprobs(row: int, logits_V: Float32Array, asked: LogprobsRequest, tokens: Int32Array) -> RowLogprobs:
    of_row = LogprobsRow.of(logits_V)
    named = unpack(asked.named_ids)
    ids, values = of_row.likeliest(asked.num_candidates)
    return RowLogprobs(
        row,
        float(of_row.of_ids(tokens[row : row + 1])[0]),
        pack(np.concatenate([ids, named])),
        np.concatenate([values, of_row.of_ids(named)]).tobytes(),
    )


def _rows(step: Step) -> tuple[list[int], list[int]]:
    """Which of the batch's rows of logits sample, and where each chunk's rows that score begin among them."""
    sampled = list(range(len(step.decode_slots)))
    scores = {scored.chunk: scored for scored in step.scored}
    starts, row = [], len(sampled)
    for index, chunk in enumerate(step.chunks):
        if (scored := scores.get(index)) is not None:
            starts.append(row)
            row += len(scored.tokens)
        if chunk.ends_prefill:
            sampled.append(row)
            row += 1
    return sampled, starts
