"""Special rows on a device: those whose sequences ask for logits to be changed or for log-probabilities.

    step ─▶ tokens of every row, as of a plain step
         ─▶ changed rows, so many at a time: processors ─▶ sampler ─▶ their tokens take the places of the first ones
         ─▶ log-probabilities ─▶ host memory, read when the step is over

It follows the step in the order of the device's work and waits for nothing (the runner does, for the tokens that a
constrained row's mask follows from), so it stands beside the step's graph: a
step without such rows is what it always was. What a slot's controls are goes to the device with its admission; the ids
that it samples are added there. Whatever fails a row on the host ends that row, with a reason.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from pagewire.wire.columns import Int32Array, unpack
from pagewire.wire.logits import MAX_NAMED_IDS, MAX_SCORED_ROWS, LogprobsRequest
from pagewire.wire.plan import NO_TOKEN, Admit
from pagewire.worker.cuda.special_results import Logprobs, SpecialInFlight
from pagewire.worker.cuda.step_work import LogitRows, StepLogits, StepMemory
from pagewire.worker.grammar.masks import StepMasks
from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.kernels.workspaces import CHANGED_FIELDS, MAX_TOP_LOGPROBS
from pagewire.worker.slots.state import Slots, Step


class SpecialWork:
    """The work of special rows, over one set of slots."""

    def __init__(self, kernels: Kernels, memory: StepMemory, on_error: Callable[[str, Exception], None]) -> None:
        """In the memory of the steps, which come before. `on_error` is told what failed a row, for a log."""
        self._kernels = kernels
        self._slots = memory.slots
        self._sampling = memory.sampling
        self._changed = memory.changed
        self._workspace = memory.logprobs
        self.on_error = on_error
        self._device = memory.slots.arena.device
        self._broken: dict[int, str] = {}
        """Slots whose admission could not be taken over."""

    def admit(self, slots: Slots, step: Step) -> None:
        """Take over what the step's admissions ask to be done to logits. Before the step."""
        for slot in step.admitted:
            self._broken.pop(slot, None)
            admit = slots.special.get(slot)
            if admit is not None and admit.changes_logits:
                self._admit(slot, admit)

    def logit_rows(self, step: Step) -> LogitRows | None:
        """Of a step in which rows score; none of any other."""
        if not step.scored:
            return None
        rows, sampled, _ = logit_rows(step)
        return LogitRows(self._carry(np.asarray(rows, np.int64)), self._carry(np.asarray(sampled, np.int64)))

    @torch.inference_mode()
    def run(
        self, slots: Slots, step: Step, logits: StepLogits, tokens_S: torch.Tensor, masks: StepMasks
    ) -> SpecialInFlight:
        """After the step's own work; `tokens_S` (int32) is what it sampled, of which changed rows change theirs.
        `masks` are those of rows that are constrained."""
        in_flight = SpecialInFlight(constrained=masks.failures)
        asked: dict[int, LogprobsRequest] = {}
        changed: list[int] = []
        for row in step.special_rows:
            slot = int(step.sample_slots[row])
            admit = slots.special[slot]
            if slot in self._broken:
                in_flight.broken[row] = self._broken[slot]
                continue
            if admit.changes_logits:
                changed.append(row)
            if admit.logprobs is not None:
                asked[row] = admit.logprobs
        most = self._changed.max_rows
        for first in range(0, len(changed), most):
            rows = changed[first : first + most]
            self._change(step, rows, logits.sampled_SV, tokens_S, masks, in_flight)
            indices = [index for index, row in enumerate(rows) if row in asked and asked[row].is_processed]
            processed = [rows[index] for index in indices]
            self._report(processed, indices, asked, self._changed_CV(rows), tokens_S, in_flight)
        all_changed = set(changed)
        others = [row for row in asked if not (asked[row].is_processed and row in all_changed)]
        for first in range(0, len(others), MAX_SCORED_ROWS):
            rows = others[first : first + MAX_SCORED_ROWS]
            self._report(rows, rows, asked, logits.sampled_SV, tokens_S, in_flight)
        if step.scored:
            self._score(slots, step, logits.all_LV, in_flight)
        return in_flight

    def run_padding(self, logits: StepLogits, num_rows: int) -> None:
        """Everything that special rows may need, of so many rows that leave no trace."""
        rows = min(num_rows, self._changed.max_rows)
        changed = np.asarray([(row, -1, 0) for row in range(rows)], np.int32)
        tokens_S = torch.zeros(num_rows, dtype=torch.int32, device=self._device)
        for has_masks in (False, True):
            self._draw(self._carry(changed), logits.sampled_SV, tokens_S, has_masks=has_masks)
        for logits_LV, most in ((self._changed_CV(range(rows)), rows), (logits.all_LV, num_rows)):
            count = min(most, MAX_SCORED_ROWS)
            for num_named in (0, MAX_NAMED_IDS):
                named = np.zeros((count, num_named), np.int32)
                self._logprobs(logits_LV, np.arange(count, dtype=np.int32), tokens_S[:count], named)

    def _admit(self, slot: int, admit: Admit) -> None:
        try:
            row = self._changed.layout.row_of(admit)
        except Exception as error:
            self.on_error(f"the admission to slot {slot}", error)
            self._broken[slot] = f"its logits could not be worked on: {type(error).__name__}"
            return
        self._changed.control_RW[slot, : len(row)].copy_(self._staged(row), non_blocking=True)

    def _change(
        self,
        step: Step,
        rows: list[int],
        logits_SV: torch.Tensor,
        tokens_S: torch.Tensor,
        masks: StepMasks,
        in_flight: SpecialInFlight,
    ) -> None:
        changed = np.empty((len(rows), CHANGED_FIELDS), np.int32)
        changed[:, 0] = rows
        changed[:, 1] = step.sample_slots[rows]
        changed[:, 2] = step.sample_positions[rows]
        has_masks = any(row in masks.masks for row in rows)
        if has_masks:
            everything = np.full(self._changed.layout.mask_words, -1, np.int32)
            of_rows = np.stack([masks.masks.get(row, everything) for row in rows])
            self._changed.masks_CW[: len(rows)].copy_(self._staged(of_rows), non_blocking=True)
        first_tokens_C = self._draw(self._carry(changed), logits_SV, tokens_S, has_masks=has_masks)
        in_flight.changed.extend(rows)
        in_flight.first_tokens.append(_to_host(first_tokens_C))

    def _draw(
        self, changed_CF: torch.Tensor, logits_SV: torch.Tensor, tokens_S: torch.Tensor, *, has_masks: bool
    ) -> torch.Tensor:
        """Processes and draws; returns what `tokens_S` had there before."""
        kernels, changed = self._kernels, self._changed
        row_C, slot_C = changed_CF[:, 0].to(torch.int64), changed_CF[:, 1].clamp(min=0).to(torch.int64)
        first_tokens_C = tokens_S.index_select(0, row_C)
        kernels.process(logits_SV, changed_CF, self._slots, changed, has_masks=has_masks)
        tokens_C = torch.empty_like(first_tokens_C)
        kernels.sample(
            changed.logits_CV[: len(row_C)],
            self._slots.sampling_RP.index_select(0, slot_C),
            changed_CF[:, 2].to(torch.int64),
            tokens_C,
            workspace=self._sampling,
        )
        # Logits that are no numbers are so before and after.
        tokens_C = torch.where(first_tokens_C < 0, first_tokens_C, tokens_C)
        kernels.finish_changed(changed_CF, tokens_C, tokens_S, self._slots, changed)
        return first_tokens_C

    def _changed_CV(self, rows: Sequence[int]) -> torch.Tensor:
        return self._changed.logits_CV[: len(rows)]

    def _report(
        self,
        rows: list[int],
        logit_rows: list[int],
        asked: dict[int, LogprobsRequest],
        logits_LV: torch.Tensor,
        tokens_S: torch.Tensor,
        in_flight: SpecialInFlight,
    ) -> None:
        if not rows:
            return
        requests = [asked[row] for row in rows]
        # Of one width, as when it was warmed up.
        width = MAX_NAMED_IDS if any(each.named_ids for each in requests) else 0
        named = np.full((len(rows), width), NO_TOKEN, np.int32)
        for index, each in enumerate(requests):
            ids = unpack(each.named_ids)
            named[index, : len(ids)] = ids
        chosen_S = tokens_S.index_select(0, self._carry(np.asarray(rows, np.int64)))
        report = self._logprobs(logits_LV, np.asarray(logit_rows, np.int32), chosen_S, named)
        in_flight.reports.append((rows, requests, report))

    def _score(self, slots: Slots, step: Step, all_LV: torch.Tensor, in_flight: SpecialInFlight) -> None:
        _, _, scored = logit_rows(step)
        tokens = self._carry(np.concatenate([each.tokens for each in step.scored]))
        report = self._logprobs(all_LV, np.asarray(scored, np.int32), tokens, np.zeros((len(scored), 0), np.int32))
        counts = [slots.special[each.slot].prompt_logprobs or 0 for each in step.scored]
        in_flight.scores.append((step.scored, counts, report))

    def _logprobs(
        self, logits_LV: torch.Tensor, rows: Int32Array, tokens_S: torch.Tensor, named: Int32Array
    ) -> Logprobs:
        def empty(width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(len(rows), width, dtype=dtype, device=self._device)

        chosen_S, named_SM = empty(1)[:, 0], empty(named.shape[1])
        top_ids_SN, top_SN = empty(MAX_TOP_LOGPROBS, torch.int32), empty(MAX_TOP_LOGPROBS)
        self._kernels.logprobs(
            logits_LV,
            self._carry(rows),
            tokens_S,
            self._carry(named),
            chosen_S,
            named_SM,
            top_ids_SN,
            top_SN,
            workspace=self._workspace,
        )
        return Logprobs(*map(_to_host, (chosen_S, named_SM, top_ids_SN, top_SN)))

    def _carry(self, values: npt.NDArray[np.integer]) -> torch.Tensor:
        return self._staged(values).to(self._device, non_blocking=True)

    def _staged(self, values: npt.NDArray[np.integer]) -> torch.Tensor:
        """In memory that a device copies from while the host goes on; it is not used again before that is done."""
        tensor = torch.from_numpy(values)
        return tensor.pin_memory() if self._device.type == "cuda" else tensor


def logit_rows(step: Step) -> tuple[list[int], list[int], list[int]]:
    """Rows of the batch that give logits, ascending; and, as indices of these, those that sample, in the order of the
    samples, and those that score, in the order of the scores."""
    rows = list(range(len(step.decode_slots)))
    sampled, scored = list(rows), list[int]()
    scores = {each.chunk: len(each.tokens) for each in step.scored}
    first = len(rows)
    for index, chunk in enumerate(step.chunks):
        scored += range(len(rows), len(rows) + scores.get(index, 0))
        rows += range(first, first + scores.get(index, 0))
        first += len(chunk.tokens)
        if chunk.ends_prefill:
            sampled.append(len(rows))
            rows.append(first - 1)
    return rows, sampled, scored


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Launched, not waited for; into page-locked memory of its own. The tensor is nobody else's."""
    return tensor.to("cpu", non_blocking=True)
