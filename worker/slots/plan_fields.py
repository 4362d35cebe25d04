"""A plan's packed columns: decoding them, and the ranges that all of them share."""

from pagewire.wire.codec import WireError
from pagewire.wire.columns import Int32Array, unpack, unpack_pairs
from pagewire.worker.slots.columns import SlotLimits


class PlanError(Exception):
    """A plan that must not run. The message names the field, the value and the limit."""


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
