"""Packed columns: lists of integers as little-endian int32 bytes.

A column of 256 token ids is one 1 KiB bytes object to msgpack, and one numpy view to its reader: no Python object
per integer on either side.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pagewire.wire.codec import WireError

Int32Array = npt.NDArray[np.int32]
_LITTLE_INT32 = np.dtype("<i4")
ID_BYTES = _LITTLE_INT32.itemsize


def pack(values: Sequence[int] | npt.NDArray[np.integer]) -> bytes:
    """Pack integers, each in int32's range, into a column. Raises OverflowError for a Python int outside it."""
    return np.asarray(values, dtype=_LITTLE_INT32).tobytes()


def unpack(column: bytes) -> Int32Array:
    """View a column as int32 values, read-only and without a copy. Raises WireError for a torn column."""
    if len(column) % ID_BYTES:
        raise WireError(f"{len(column)} bytes are no column of int32")
    return np.frombuffer(column, dtype=_LITTLE_INT32)


def pack_pairs(pairs: Sequence[tuple[int, int]]) -> bytes:
    """Pack pairs row by row: a0 b0 a1 b1 …"""
    return pack([value for pair in pairs for value in pair])


def unpack_pairs(column: bytes) -> Int32Array:
    """View a column of pairs as an array of shape [pairs, 2]. Raises WireError for an odd count."""
    values = unpack(column)
    if len(values) % 2:
        raise WireError(f"{len(column)} bytes are no column of int32 pairs")
    return values.reshape(-1, 2)
