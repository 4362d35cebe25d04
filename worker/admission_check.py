"""Decides whether a plan's admissions are sound, each by itself: lengths, ids, block table, sampling parameters."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pagewire.wire.columns import Int32Array
from pagewire.wire.plan import Admit
from pagewire.worker.plan_fields import PlanError, check_block_range, decode_column
from pagewire.worker.slot_columns import BoolArray, SlotLimits

_MAX_TEMPERATURE = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class CheckedAdmit:
    """An admission with its columns decoded."""

    admit: Admit
    tokens: Int32Array
    blocks: Int32Array
    start: int
    """First position to compute."""


def check_admits(admits: Sequence[Admit], occupied: BoolArray, limits: SlotLimits) -> list[CheckedAdmit]:
    """Each admission on its own, and that it goes to a slot that is not occupied. Raises PlanError."""
    taken: set[int] = set()
    checked = []
    for admit in admits:
        field = f"the admission to slot {admit.slot}"
        if not 0 <= admit.slot < limits.max_num_seqs:
            raise PlanError(f"{field}: slots are 0 to {limits.max_num_seqs - 1}")
        if occupied[admit.slot] or admit.slot in taken:
            raise PlanError(f"{field}: the slot is occupied")
        taken.add(admit.slot)
        checked.append(_check_admit(admit, field, limits))
    return checked


def _check_admit(admit: Admit, field: str, limits: SlotLimits) -> CheckedAdmit:
    if not 1 <= admit.num_tokens <= limits.max_model_len:
        raise PlanError(f"{field}: num_tokens is {admit.num_tokens}; the range is 1 to {limits.max_model_len}")
    if not 0 <= admit.num_cached <= admit.num_tokens:
        raise PlanError(f"{field}: num_cached is {admit.num_cached}; the range is 0 to num_tokens, {admit.num_tokens}")
    tokens = decode_column(admit.tokens, f"{field}: tokens")
    start = min(admit.num_cached, admit.num_tokens - 1)
    if len(tokens) != admit.num_tokens - start:
        raise PlanError(
            f"{field}: {len(tokens)} token ids, but {admit.num_tokens - start} are to compute "
            f"of {admit.num_tokens} with {admit.num_cached} cached"
        )
    outside = (tokens < 0) | (tokens >= limits.vocab_size)
    if outside.any():
        raise PlanError(f"{field}: token id {tokens[outside][0]}; ids are 0 to {limits.vocab_size - 1}")
    blocks = decode_column(admit.blocks, f"{field}: blocks")
    if not admit.num_tokens <= len(blocks) * limits.block_size or len(blocks) > limits.max_blocks_per_seq:
        raise PlanError(
            f"{field}: {len(blocks)} blocks of {limits.block_size} for {admit.num_tokens} tokens; "
            f"a table has at most {limits.max_blocks_per_seq}"
        )
    check_block_range(blocks, f"{field}: blocks", limits)
    sampling = admit.sampling
    if not 0 <= sampling.temperature <= _MAX_TEMPERATURE:
        raise PlanError(f"{field}: temperature is {sampling.temperature}; it must be at least 0 and finite in float32")
    if sampling.top_k < 0:
        raise PlanError(f"{field}: top_k is {sampling.top_k}; it must be at least 0")
    if not 0 < sampling.top_p <= 1:
        raise PlanError(f"{field}: top_p is {sampling.top_p}; it must be greater than 0 and at most 1")
    if not 0 <= sampling.seed < 2**64:
        raise PlanError(f"{field}: seed is {sampling.seed}; the range is 0 to 2^64 - 1")
    return CheckedAdmit(admit, tokens, blocks, start)
