"""Decides whether a step plan may be applied to the slots as they are.

Nothing here changes state: a plan is either found wrong, with `PlanError` naming what and by how much, or returned
with its columns decoded. A worker that ran a wrong plan could write one sequence's KV into another's block, so
everything that the contract (`pagewire.wire.plan`) promises is checked, also what the engine can only break by a bug:

- a block given to be written stands in no other live table at that moment (others may share it later);
- a slot's table covers every position that the step runs;
- token ids are rows of the embedding, block ids are blocks of the cache.

Cost: a few vector operations per step, and work in Python per admission only.
"""

from dataclasses import dataclass

import numpy as np

from pagewire.wire.columns import Int32Array
from pagewire.wire.plan import StepPlan
from pagewire.worker.slots.admission_check import CheckedAdmit, check_admits
from pagewire.worker.slots.columns import BoolArray, SlotColumns, SlotLimits
from pagewire.worker.slots.plan_fields import (
    PlanError,
    check_block_range,
    check_slot_range,
    decode_column,
    decode_pairs,
)


@dataclass(frozen=True, slots=True)
class CheckedPlan:
    """A plan that may be applied."""

    release: Int32Array
    admits: list[CheckedAdmit]
    grow_slots: Int32Array
    grow_blocks: Int32Array
    grow_indices: Int32Array
    """Where in its slot's table each grown block goes."""
    decode_slots: Int32Array
    """Ascending, without the idle ones."""
    chunk_slots: list[int]
    chunk_sizes: list[int]


def check_plan(plan: StepPlan, columns: SlotColumns, limits: SlotLimits) -> CheckedPlan:
    """Check everything but epoch and step id. Raises PlanError; `columns` is only read."""
    release = decode_column(plan.release, "release")
    idle = decode_column(plan.idle, "idle")
    grow = decode_pairs(plan.grow, "grow")
    chunks = decode_pairs(plan.chunks, "chunks")

    released = _mask(release, "release", columns.occupied, "empty", limits)
    occupied = columns.occupied & ~released if len(release) else columns.occupied
    admits = check_admits(plan.admit, occupied, limits)
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

    decoding = columns.decoding() & ~released
    idling = _mask(idle, "idle", decoding, "not decoding", limits)
    decode_slots = np.flatnonzero(decoding & ~idling if len(idle) else decoding).astype(np.int32)
    _check_positions(decode_slots, columns.num_computed, num_blocks, limits)

    remaining = {checked.admit.slot: len(checked.tokens) for checked in admits}
    _check_chunks(chunks, remaining, columns, occupied, decoding)
    total = len(decode_slots) + int(chunks[:, 1].sum())
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
        chunk_sizes=chunks[:, 1].tolist(),
    )


def _mask(slots: Int32Array, field: str, required: BoolArray, otherwise: str, limits: SlotLimits) -> BoolArray:
    """The column as a mask; every slot in it is listed once and has `required`, else it is `otherwise`."""
    mask = np.zeros(limits.max_num_seqs, np.bool_)
    if not len(slots):
        return mask
    check_slot_range(slots, field, limits)
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


def _check_positions(slots: Int32Array, num_computed: Int32Array, num_blocks: Int32Array, limits: SlotLimits) -> None:
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
