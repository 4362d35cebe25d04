"""The directory of a GGUF file: which tensors it holds, of what type, where.

Follows the format's specification (ggml's docs/gguf.md), versions 2 and 3, little-endian. Metadata is stepped over: the
configuration and the tokenizer were read from it by the supervisor. That is why the gguf package's own reader is not
used here: it builds Python objects for every metadata value, 2.5 s for a vocabulary of 49,152 and its merges, where
this takes 0.02 s.

A file is outside input: every length is checked against what the file can hold before it is used.
"""

import mmap
import struct
from dataclasses import dataclass

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4
MAX_NAME_BYTES = 1024
MAX_NESTING = 4
"""Of arrays within arrays."""
ALIGNMENT_KEY = b"general.alignment"
DEFAULT_ALIGNMENT = 32

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Metadata value types of fixed size: integers, floats and booleans."""
_UINT32, _STRING, _ARRAY = 4, 8, 9


class GgufFormatError(Exception):
    """The bytes are not a GGUF file that can be read."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """An entry of the directory."""

    name: str
    shape: tuple[int, ...]
    """Slowest dimension first, as in torch."""
    type_id: int
    """ggml's number of the type."""
    offset: int
    """Of its first byte, in the file."""


def read_directory(path: str) -> list[GgufTensor]:
    """All tensors, in the file's order. Offsets lie inside the file; sizes, which depend on the types, are the
    caller's to check. Raises GgufFormatError, or OSError where the file cannot be opened."""
    with open(path, "rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # an empty file
            raise GgufFormatError(str(error)) from error
        with data:
            return _Cursor(data).directory()


class _Cursor:
    """A position in the file that never passes its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._size = len(data)
        self._at = 0

    def directory(self) -> list[GgufTensor]:
        if self._bytes(4) != MAGIC:
            raise GgufFormatError("it does not begin with GGUF")
        version = self._integer("<I")
        if version not in VERSIONS:
            raise GgufFormatError(f"version {version} is not supported; versions 2 and 3, little-endian, are")
        num_tensors, num_metadata = self._integer("<Q"), self._integer("<Q")
        alignment = DEFAULT_ALIGNMENT
        for _ in range(num_metadata):
            key = self._string()
            type_id = self._integer("<I")
            if key == ALIGNMENT_KEY and type_id == _UINT32:
                alignment = self._integer("<I")
            else:
                self._skip_value(type_id)
        if alignment == 0 or alignment & (alignment - 1):
            raise GgufFormatError(f"general.alignment {alignment} is not a power of two")
        entries = [self._entry() for _ in range(num_tensors)]
        start = -(-self._at // alignment) * alignment
        tensors = [GgufTensor(name, shape, type_id, start + offset) for name, shape, type_id, offset in entries]
        for tensor in tensors:
            if tensor.offset > self._size:
                raise GgufFormatError(f"tensor {tensor.name} begins past the end of the file")
        return tensors

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        raw = self._string()
        if len(raw) > MAX_NAME_BYTES:
            raise GgufFormatError(f"a tensor's name has {len(raw)} bytes; at most {MAX_NAME_BYTES} are allowed")
        try:
            name = raw.decode()
        except UnicodeDecodeError as error:
            raise GgufFormatError(f"a tensor's name is not UTF-8: {raw!r}") from error
        num_dims = self._integer("<I")
        if not 1 <= num_dims <= MAX_DIMS:
            raise GgufFormatError(f"tensor {name} has {num_dims} dimensions; 1 to {MAX_DIMS} are allowed")
        shape = tuple(reversed([self._integer("<Q") for _ in range(num_dims)]))
        return name, shape, self._integer("<I"), self._integer("<Q")

    def _skip_value(self, type_id: int, depth: int = 0) -> None:
        if (size := _SCALAR_BYTES.get(type_id)) is not None:
            self._advance(size)
        elif type_id == _STRING:
            self._advance(self._integer("<Q"))
        elif type_id == _ARRAY and depth < MAX_NESTING:
            self._skip_array(depth + 1)
        else:
            raise GgufFormatError(f"metadata of type {type_id} at byte {self._at} is not known")

    def _skip_array(self, depth: int) -> None:
        item_type, count = self._integer("<I"), self._integer("<Q")
        if (size := _SCALAR_BYTES.get(item_type)) is not None:
            self._advance(size * count)
            return
        # The loop ends at the end of the file at the latest: every item takes at least its own length field.
        for _ in range(count):
            self._skip_value(item_type, depth)

    def _advance(self, count: int) -> int:
        start = self._at
        if count > self._size - start:
            raise GgufFormatError(f"it ends at byte {self._size}, inside a value of {count} bytes at byte {start}")
        self._at = start + count
        return start

    def _bytes(self, count: int) -> bytes:
        start = self._advance(count)
        return self._data[start : start + count]

    def _integer(self, form: str) -> int:
        start = self._advance(struct.calcsize(form))
        value: int = struct.unpack_from(form, self._data, start)[0]
        return value

    def _string(self) -> bytes:
        return self._bytes(self._integer("<Q"))
