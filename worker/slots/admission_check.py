"""Decides whether a plan's admissions are sound, each by itself: lengths, ids, block table, sampling parameters."""

from collections.abc import Sequence
from dataclasses import dataclass

from pagewire.wire.columns import Int32Array
from pagewire.wire.plan import Admit
from pagewire.worker.slots.columns import BoolArray, SlotLimits
from pagewire.worker.slots.plan_fields import PlanError, check_block_range, decode_column


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
    if (problem := admit.sampling.problem()) is not None:
        raise PlanError(f"{field}: {problem}")
    return CheckedAdmit(admit, tokens, blocks, start)
