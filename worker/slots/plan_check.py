"""The plan check: whether a step plan may be applied to the slots as they are.

Nothing here changes state: a plan is either found wrong, with `PlanError` naming what and by how much, or returned
with its columns decoded. A worker that ran a wrong plan could write one sequence's KV into another's block, so
everything that the contract (`pagewire.wire.plan`) promises is checked, also what the engine can only break by a bug:

- a block given to be written stands in no other live table at that moment (others may share it later);
- a slot's table covers every position that the step runs;
- token ids are rows of the embedding, block ids are blocks of the cache.

Cost: a few vector operations per step, and work in Python per admission only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pagewire.wire.codec import WireError
from pagewire.wire.columns import IndexArray, Int32Array, unpack, unpack_pairs
from pagewire.wire.logits import MAX_SCORED_ROWS
from pagewire.wire.logits_check import logits_problem
from pagewire.wire.plan import Admit, StepPlan
from pagewire.worker.slots.columns import BoolArray, SlotColumns, SlotLimits


class PlanError(Exception):
    """A plan that must not run. The message names the field, the value and the limit."""


@dataclass(frozen=True, slots=True)
class CheckedAdmit:
    """An admission with its columns decoded."""

    admit: Admit
    tokens: Int32Array
    """Of all positions known."""
    blocks: Int32Array
    start: int
    """First position to compute."""


class CheckedPlan(NamedTuple):
    """A plan that may be applied."""

    release: Int32Array
    admits: list[CheckedAdmit]
    grow_slots: Int32Array
    grow_blocks: Int32Array
    grow_indices: Int32Array
    """Where in its slot's table each grown block goes."""
    decode_slots: IndexArray
    """Ascending, without the idle ones."""
    chunk_slots: list[int]
    chunk_sizes: list[int]


def check_plan(plan: StepPlan, columns: SlotColumns, limits: SlotLimits) -> CheckedPlan:
    """Check everything but epoch and step id. Raises PlanError; `columns` is only read."""
    release = decode_column(plan.release, "release")
    idle = decode_column(plan.idle, "idle")
    grow = decode_pairs(plan.grow, "grow")
    chunks = decode_pairs(plan.chunks, "chunks")

    occupied, decoding = columns.occupied, columns.decoding()
    if len(release):
        staying = ~_mask(release, "release", columns.occupied, "empty", limits)
        occupied, decoding = occupied & staying, decoding & staying
    admits = _check_admits(plan.admit, occupied, limits)
    num_blocks = columns.num_blocks
    if admits:
        occupied = occupied.copy()
        num_blocks = num_blocks.copy()
        for checked in admits:
            occupied[checked.admit.slot] = True
            num_blocks[checked.admit.slot] = len(checked.blocks)

    grow_indices = _check_grow(grow, occupied, num_blocks, limits)
    _check_new_blocks(release, admits, grow[:, 1], columns, limits)
    if len(grow):
        num_blocks = num_blocks.copy() if num_blocks is columns.num_blocks else num_blocks
        np.add.at(num_blocks, grow[:, 0], 1)

    running = decoding & ~_mask(idle, "idle", decoding, "not decoding", limits) if len(idle) else decoding
    decode_slots = running.nonzero()[0]
    _check_positions(decode_slots, columns.num_computed, num_blocks, limits)

    remaining = {checked.admit.slot: len(checked.tokens) - checked.start for checked in admits}
    _check_chunks(chunks, remaining, columns, occupied, decoding)
    _check_scored(chunks, admits, columns)
    chunk_sizes = chunks[:, 1].tolist()
    total = len(decode_slots) + sum(chunk_sizes)
    if total > limits.max_num_batched_tokens:
        raise PlanError(f"the step runs {total} tokens; max_num_batched_tokens is {limits.max_num_batched_tokens}")
    return CheckedPlan(
        release=release,
        admits=admits,
        grow_slots=grow[:, 0],
        grow_blocks=grow[:, 1],
        grow_indices=grow_indices,
        decode_slots=decode_slots,
        chunk_slots=chunks[:, 0].tolist(),
        chunk_sizes=chunk_sizes,
    )


def _check_admits(admits: Sequence[Admit], occupied: BoolArray, limits: SlotLimits) -> list[CheckedAdmit]:
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
    tokens = decode_column(admit.tokens, f"{field}: tokens")
    num_tokens = len(tokens)
    if not 1 <= num_tokens <= limits.max_model_len:
        raise PlanError(f"{field}: tokens are {num_tokens}; the range is 1 to {limits.max_model_len}")
    if not 1 <= admit.prompt_len <= num_tokens:
        raise PlanError(f"{field}: prompt_len is {admit.prompt_len}; the range is 1 to the {num_tokens} tokens")
    if not 0 <= admit.num_cached <= num_tokens:
        raise PlanError(f"{field}: num_cached is {admit.num_cached}; the range is 0 to the {num_tokens} tokens")
    outside = (tokens < 0) | (tokens >= limits.vocab_size)
    if outside.any():
        raise PlanError(f"{field}: token id {tokens[outside][0]}; ids are 0 to {limits.vocab_size - 1}")
    blocks = decode_column(admit.blocks, f"{field}: blocks")
    if not num_tokens <= len(blocks) * limits.block_size or len(blocks) > limits.max_blocks_per_seq:
        raise PlanError(
            f"{field}: {len(blocks)} blocks of {limits.block_size} for {num_tokens} tokens; "
            f"a table has at most {limits.max_blocks_per_seq}"
        )
    check_block_range(blocks, f"{field}: blocks", limits)
    if (problem := admit.sampling.problem()) is not None:
        raise PlanError(f"{field}: {problem}")
    asked = (admit.controls, admit.logprobs, admit.prompt_logprobs)
    if asked != (None, None, None) and (problem := logits_problem(*asked, limits.vocab_size)) is not None:
        raise PlanError(f"{field}: {problem}")
    if admit.prompt_logprobs is not None and admit.num_cached:
        raise PlanError(f"{field}: num_cached is {admit.num_cached}; with prompt_logprobs it must be 0")
    return CheckedAdmit(admit, tokens, blocks, start=min(admit.num_cached, num_tokens - 1))


def _mask(slots: Int32Array, field: str, required: BoolArray, otherwise: str, limits: SlotLimits) -> BoolArray:
    """The column as a mask; every slot in it is listed once and has `required`, else it is `otherwise`."""
    check_slot_range(slots, field, limits)
    mask = np.zeros(limits.max_num_seqs, np.bool_)
    mask[slots] = True
    if np.count_nonzero(mask) != len(slots):
        raise PlanError(f"{field} names a slot twice: {sorted(slots.tolist())}")
    wrong = slots[~required[slots]]
    if len(wrong):
        raise PlanError(f"{field} names slot {wrong[0]}, which is {otherwise}")
    return mask


def _check_grow(grow: Int32Array, occupied: BoolArray, num_blocks: Int32Array, limits: SlotLimits) -> Int32Array:
    """Where in its slot's table each pair's block goes: a slot's pairs are appended in the order listed."""
    slots, blocks = grow[:, 0], grow[:, 1]
    if not len(slots):
        return slots
    check_slot_range(slots, "grow", limits)
    check_block_range(blocks, "grow", limits)
    empty = slots[~occupied[slots]]
    if len(empty):
        raise PlanError(f"grow names slot {empty[0]}, which is empty")
    order = np.argsort(slots, kind="stable")
    ordered = slots[order]
    rank = np.empty(len(slots), np.int32)
    rank[order] = np.arange(len(slots)) - np.searchsorted(ordered, ordered)
    indices = (num_blocks[slots] + rank).astype(np.int32)
    full = slots[indices >= limits.max_blocks_per_seq]
    if len(full):
        raise PlanError(f"grow gives slot {full[0]} more than {limits.max_blocks_per_seq} blocks, its table's length")
    return indices


def _check_new_blocks(
    release: Int32Array, admits: list[CheckedAdmit], grown: Int32Array, columns: SlotColumns, limits: SlotLimits
) -> None:
    """A block given to be written stands in no other table: of the slots that stay, or given by this plan before."""
    if not admits and not len(grown):
        return
    seen: set[int] = set()
    owned: list[int] = []
    for checked in admits:
        first_owned = checked.admit.num_cached // limits.block_size
        table = checked.blocks.tolist()
        if len(set(table)) != len(table):
            raise PlanError(f"the admission to slot {checked.admit.slot}: blocks names a block twice")
        _refuse_shared(seen.intersection(table[first_owned:]), f"the admission to slot {checked.admit.slot}")
        seen.update(table)
        owned += table[first_owned:]
    grown_blocks = grown.tolist()
    if len(set(grown_blocks)) != len(grown_blocks):
        raise PlanError(f"grow names a block twice: {sorted(grown_blocks)}")
    _refuse_shared(seen.intersection(grown_blocks), "grow")
    owned += grown_blocks

    new = np.asarray(owned, np.int32)
    referenced = new[columns.references[new] > 0]
    if not len(referenced):
        return
    freed = np.sort(np.concatenate([np.empty(0, np.int32), *(_table(columns, slot) for slot in release.tolist())]))
    num_freed = np.searchsorted(freed, referenced, "right") - np.searchsorted(freed, referenced, "left")
    held = referenced[columns.references[referenced] > num_freed]
    _refuse_shared(set(held.tolist()), "the plan")


def _table(columns: SlotColumns, slot: int) -> Int32Array:
    return columns.block_tables[slot, : columns.num_blocks[slot]]


def _refuse_shared(blocks: set[int], field: str) -> None:
    if blocks:
        raise PlanError(f"{field} gives block {min(blocks)} to be written, which stands in another slot's table")


def _check_positions(slots: IndexArray, num_computed: Int32Array, num_blocks: Int32Array, limits: SlotLimits) -> None:
    positions = num_computed[slots]
    past = slots[positions >= limits.max_model_len]
    if len(past):
        raise PlanError(f"slot {past[0]} would decode at position {limits.max_model_len}, which is max_model_len")
    short = slots[positions >= num_blocks[slots] * limits.block_size]
    if len(short):
        slot = short[0]
        raise PlanError(
            f"slot {slot} would decode at position {num_computed[slot]}, "
            f"but has {num_blocks[slot]} blocks of {limits.block_size}"
        )


def _check_chunks(
    chunks: Int32Array, remaining: dict[int, int], columns: SlotColumns, occupied: BoolArray, decoding: BoolArray
) -> None:
    """`remaining` has the new slots' tokens to compute; it gets those of the others that chunks name."""
    seen: set[int] = set()
    for slot, size in chunks.tolist():
        if not 0 <= slot < len(occupied) or not occupied[slot]:
            raise PlanError(f"chunks names slot {slot}, which is empty or out of range")
        if slot in seen:
            raise PlanError(f"chunks names slot {slot} twice")
        seen.add(slot)
        if slot not in remaining:
            if decoding[slot]:
                raise PlanError(f"chunks names slot {slot}, which is decoding")
            remaining[slot] = int(columns.num_tokens[slot] - columns.num_computed[slot])
        if not 1 <= size <= remaining[slot]:
            raise PlanError(f"the chunk of slot {slot} is {size} tokens; the range is 1 to {remaining[slot]}")


def _check_scored(chunks: Int32Array, admits: list[CheckedAdmit], columns: SlotColumns) -> None:
    if not len(chunks):
        return
    asks = {checked.admit.slot: checked.admit.prompt_logprobs is not None for checked in admits}
    total = sum(size for slot, size in chunks.tolist() if asks.get(slot, columns.scores_prompt[slot]))
    if total > MAX_SCORED_ROWS:
        raise PlanError(f"chunks of slots with prompt_logprobs are {total} tokens; at most {MAX_SCORED_ROWS} may be")


def decode_column(data: bytes, field: str) -> Int32Array:
    """The column as int32 values. Raises PlanError for a torn one."""
    try:
        return unpack(data)
    except WireError as error:
        raise PlanError(f"{field}: {error}") from error


def decode_pairs(data: bytes, field: str) -> Int32Array:
    """The column as [pairs, 2]. Raises PlanError for a torn one."""
    try:
        return unpack_pairs(data)
    except WireError as error:
        raise PlanError(f"{field}: {error}") from error


def check_slot_range(slots: Int32Array, field: str, limits: SlotLimits) -> None:
    """Raises PlanError unless every id is a slot."""
    outside = (slots < 0) | (slots >= limits.max_num_seqs)
    if outside.any():
        raise PlanError(f"{field} names slot {slots[outside][0]}; slots are 0 to {limits.max_num_seqs - 1}")


def check_block_range(blocks: Int32Array, field: str, limits: SlotLimits) -> None:
    """Raises PlanError unless every id is a block."""
    outside = (blocks < 0) | (blocks >= limits.num_blocks)
    if outside.any():
        raise PlanError(f"{field} names block {blocks[outside][0]}; blocks are 0 to {limits.num_blocks - 1}")
