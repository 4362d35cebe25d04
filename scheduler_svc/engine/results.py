"""Results: what a step's result says of its rows, and whether it can be that step's.

Log-probabilities pass through here to the frontends that asked for them. It knows no sockets, and of sequences how
far their prompts are scored.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from pagewire.scheduler_svc.engine.events import Event
from pagewire.scheduler_svc.engine.slot_table import SlotTable
from pagewire.scheduler_svc.engine.steps import PlannedStep
from pagewire.wire.columns import ID_BYTES, BoolArray, Int32Array, unpack
from pagewire.wire.plan import NO_TOKEN, ChunkLogprobs, RowFailure, RowLogprobs, StepResult
from pagewire.wire.requests import PromptLogprobs, TokenLogprobs

NO_FAILURES: Mapping[int, RowFailure] = MappingProxyType({})


class StepRows(NamedTuple):
    """A result, by rows that sampled and chunks that scored."""

    tokens: Int32Array
    """One for each row that sampled, or NO_TOKEN."""
    failures: Mapping[int, RowFailure] = NO_FAILURES
    """By row."""
    logprobs: Sequence[RowLogprobs] = ()
    prompt_logprobs: Sequence[ChunkLogprobs] = ()


def rows_of(result: StepResult) -> StepRows:
    """Raises ValueError for a torn column, and for several tokens a row, which nothing here plans."""
    tokens = unpack(result.tokens)
    if result.counts and unpack(result.counts).tolist() != [1] * len(tokens):
        raise ValueError("rows have other numbers of tokens than one")
    failures = {failure.row: failure for failure in result.failures} if result.failures else NO_FAILURES
    return StepRows(tokens, failures, result.logprobs, result.prompt_logprobs)


def drawn(step: PlannedStep, rows: StepRows) -> BoolArray:
    """Which rows have a token. Raises ValueError for what cannot be this step's."""
    tokens, failures = rows.tokens, rows.failures
    if len(tokens) != len(step.rows):
        raise ValueError(f"step {step.plan.step_id} samples {len(step.rows)} rows and {len(tokens)} tokens came")
    has_token: BoolArray = tokens != NO_TOKEN
    if failures or np.count_nonzero(has_token) < len(has_token):
        failed = np.flatnonzero(~has_token).tolist()
        if failed != sorted(failures):
            raise ValueError(f"rows {failed} of step {step.plan.step_id} have no token, and {sorted(failures)} failed")
    return has_token


def check_logprobs(step: PlannedStep, rows: StepRows, vocab_size: int) -> None:
    """Raises ValueError for log-probabilities that cannot be this step's."""
    last = -1
    for each in rows.logprobs:
        if not last < each.row < len(rows.tokens) or rows.tokens[each.row] == NO_TOKEN:
            raise ValueError(f"log-probabilities came for row {each.row} of {len(rows.tokens)}, behind row {last}")
        last = each.row
        _check_columns(each.ids, each.values, vocab_size)
    if len(rows.prompt_logprobs) != len(step.scored):
        raise ValueError(f"{len(step.scored)} chunks score and results of {len(rows.prompt_logprobs)} came")
    for scored, chunk in zip(step.scored, rows.prompt_logprobs, strict=True):
        num_bytes = scored.num_tokens * ID_BYTES
        if (chunk.chunk, chunk.position, len(chunk.chosen)) != (scored.chunk, scored.position, num_bytes):
            raise ValueError(f"scores came for chunk {chunk.chunk} from position {chunk.position}, not for {scored}")
        if len(chunk.ids) != num_bytes * scored.num_candidates:
            raise ValueError(f"{len(chunk.ids)} bytes of ids came for {scored}")
        _check_columns(chunk.ids, chunk.values, vocab_size)


def _check_columns(ids: bytes, values: bytes, vocab_size: int) -> None:
    column = unpack(ids)
    if len(values) != len(ids) or (len(column) and not NO_TOKEN <= column.min() <= column.max() < vocab_size):
        raise ValueError(f"{len(ids)} bytes of ids and {len(values)} of log-probabilities fit no {vocab_size} ids")


def logprobs_of_live(logprobs: Sequence[RowLogprobs], live: BoolArray) -> list[TokenLogprobs]:
    """Those of the rows whose tokens count, by the index that a token has among these."""
    index = np.cumsum(live) - 1
    return [
        TokenLogprobs(int(index[each.row]), each.chosen, each.ids, each.values) for each in logprobs if live[each.row]
    ]


def scores(step: PlannedStep, result: StepRows, slots: SlotTable) -> list[Event[PromptLogprobs]]:
    """What has come of prompts' log-probabilities, of those sequences that still hold their slots."""
    events = []
    for scored, chunk in zip(step.scored, result.prompt_logprobs, strict=True):
        if slots.generation.item(scored.slot) != scored.generation:
            continue
        sequence = slots.sequence(scored.slot)
        sequence.next_scored = scored.position + scored.num_tokens
        message = PromptLogprobs(sequence.key.handle, chunk.position, chunk.chosen, chunk.ids, chunk.values)
        events.append(Event(sequence.key.frontend, message))
    return events
