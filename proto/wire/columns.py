"""Packed columns: lists of integers as little-endian int32 bytes.

A column of 256 token ids is one 1 KiB bytes object to msgpack, and one numpy view to its reader: no Python object
per integer on either side.

And rows of sampling parameters (`ROW`, a numpy dtype), as every side keeps them: a device holds them as 32-bit words,
the native library as a C struct. They stand here and not with their declaration, because the supervisor, which reads a
model's defaults, loads no numpy.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pagewire.wire.codec import WireError
from pagewire.wire.sampling import PARAMETERS, SamplingParams

Int32Array = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]
IndexArray = npt.NDArray[np.intp]
"""Rows as numpy wants an index. It converts any other type at every use, which takes longer than the use."""
Float32Array = npt.NDArray[np.float32]
_LITTLE_INT32 = np.dtype("<i4")
_LITTLE_FLOAT32 = np.dtype("<f4")
ID_BYTES = _LITTLE_INT32.itemsize
_EMPTY = np.frombuffer(b"", _LITTLE_INT32)
"""Most columns of most messages are."""


def pack(values: Sequence[int] | npt.NDArray[np.integer]) -> bytes:
    """Pack integers, each in int32's range, into a column. Raises OverflowError for a Python int outside it."""
    if not len(values):
        return b""
    return np.asarray(values, dtype=_LITTLE_INT32).tobytes()


def unpack(column: bytes) -> Int32Array:
    """View a column as int32 values, read-only and without a copy. Raises WireError for a torn column."""
    if not column:
        return _EMPTY
    if len(column) % ID_BYTES:
        raise WireError(f"{len(column)} bytes are no column of int32")
    return np.frombuffer(column, dtype=_LITTLE_INT32)


def are_below(ids: Int32Array, limit: int) -> bool:
    """Whether every id is 0 to limit - 1."""
    # As unsigned numbers the negative ones are large. Of a few ids, min() and max() take four times as long.
    return int(np.count_nonzero(ids.view(np.uint32) < limit)) == len(ids)


def unpack_floats(column: bytes) -> Float32Array:
    """View a column as float32 values, read-only and without a copy. Raises WireError for a torn column."""
    if len(column) % ID_BYTES:
        raise WireError(f"{len(column)} bytes are no column of float32")
    return np.frombuffer(column, dtype=_LITTLE_FLOAT32)


def pack_pairs(pairs: Sequence[tuple[int, int]]) -> bytes:
    """Pack pairs row by row: a0 b0 a1 b1 …"""
    return pack([value for pair in pairs for value in pair])


def unpack_pairs(column: bytes) -> Int32Array:
    """View a column of pairs as an array of shape [pairs, 2]. Raises WireError for an odd count."""
    values = unpack(column)
    if len(values) % 2:
        raise WireError(f"{len(column)} bytes are no column of int32 pairs")
    return values.reshape(-1, 2)


ROW = np.dtype(
    [(name, each.dtype) for name, each in sorted(PARAMETERS.items(), key=lambda item: -int(item[1].dtype[2:]))],
    align=True,
)
"""A row of parameters, the widest first and its length a multiple of that, as in C."""

_MOST_KEPT = {"<i4": 2**31 - 1}
"""No vocabulary has as many ids."""

ROW_WORDS = ROW.itemsize // 4

SamplingRows = npt.NDArray[np.void]
"""Rows of `ROW`."""


def row_of(sampling: SamplingParams) -> npt.NDArray[np.void]:
    """One row of `ROW`, shape []. The parameters are within their limits."""
    kept = (min(getattr(sampling, name), _MOST_KEPT.get(PARAMETERS[name].dtype, math.inf)) for name in ROW.names or ())
    return np.array(tuple(kept), ROW)


def words_of(rows: SamplingRows) -> Int32Array:
    """The rows as 32-bit words, [S, ROW_WORDS]. Shares memory where the rows are contiguous."""
    return np.ascontiguousarray(rows).view(np.int32).reshape(-1, ROW_WORDS)


def first_word(name: str) -> int:
    """Where a parameter begins in a row, in words."""
    assert ROW.fields is not None
    return int(ROW.fields[name][1]) // 4
