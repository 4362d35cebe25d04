"""The header of a GGUF file: its metadata, and where each of its tensors lies.

The supervisor reads a model's configuration and tokenizer from it, a worker its tensors. Follows the format's
specification (ggml's docs/gguf.md), versions 2 and 3, little-endian.

A file is outside input: every count is held against the bytes that are left, and against a limit of its own, before
anything is made of it. That, and time, is why the gguf package's own reader is not used: it follows a count of 2^62 for
as long as it lives, and makes several Python objects of every byte of an array, 2.5 s for a vocabulary of 49,152 and
its merges, where this takes 0.1 s, and 0.02 s where the metadata is stepped over.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4
MAX_NAME_BYTES = 1024
MAX_KEY_BYTES = 65535
"""As the specification says."""
MAX_KEYS = 1 << 14
"""Files have some dozens."""
MAX_TENSORS = 1 << 17
MAX_ITEMS = 1 << 21
"""Of all arrays together; the largest vocabularies have half a million merges."""
MAX_TEXT_BYTES = 1 << 26
"""Of all texts together, those in arrays included."""
MAX_NESTING = 4
"""Of arrays within arrays."""
MAX_ARRAYS = 1 << 16
"""Of all arrays within arrays; no key that is read has any."""
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Metadata value types of fixed size, as struct names them."""
_UINT32, _STRING, _ARRAY = 4, 8, 9
_LEAST_BYTES = {_STRING: 8, _ARRAY: 12} | {kind: struct.calcsize("<" + form) for kind, form in _SCALARS.items()}
"""The fewest bytes that a value of the type takes."""
_LEAST_PAIR_BYTES = 8 + 4 + 1
_LEAST_ENTRY_BYTES = 8 + 4 + 8 + 4 + 8
_U64 = struct.Struct("<Q")


class GgufFormatError(Exception):
    """The bytes are not a GGUF file that can be read; the message names key or tensor."""


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


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What stands before the tensors' data."""

    values: Mapping[str, Any]
    """Metadata as Python values; arrays are lists."""
    tensors: tuple[GgufTensor, ...]
    """In the file's order, no name twice."""


def read_header(path: str | Path, with_values: bool = True) -> GgufHeader:
    """Read a file's header. Without values, the metadata is stepped over and given as empty.

    Offsets lie inside the file; sizes, which depend on the types, are the caller's to check. Raises GgufFormatError, or
    OSError where the file cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # an empty file
            raise GgufFormatError(str(error)) from error
        with data:
            return _Cursor(data, with_values).header()


class _Cursor:
    """A position in the file that never passes its end, and what may still be made of the rest."""

    def __init__(self, data: mmap.mmap, with_values: bool) -> None:
        self._data = data
        self._size = len(data)
        self._at = 0
        self._with_values = with_values
        self._items_left = MAX_ITEMS
        self._arrays_left = MAX_ARRAYS
        self._text_left = MAX_TEXT_BYTES
        self._reading = "the header"

    def header(self) -> GgufHeader:
        if self._take(4) != MAGIC:
            raise GgufFormatError("it does not begin with GGUF")
        version = self._integer("<I")
        if version not in VERSIONS:
            raise GgufFormatError(f"version {version} is not supported; versions 2 and 3, little-endian, are")
        num_tensors, num_pairs = self._integer("<Q"), self._integer("<Q")
        self._check_count("metadata_kv_count", num_pairs, _LEAST_PAIR_BYTES, MAX_KEYS)
        self._check_count("tensor_count", num_tensors, _LEAST_ENTRY_BYTES, MAX_TENSORS)
        values: dict[str, Any] = {}
        alignment: object = DEFAULT_ALIGNMENT
        for _ in range(num_pairs):
            key = self._name("a key", MAX_KEY_BYTES)
            if key in values:
                raise GgufFormatError(f"{key[:MAX_NAME_BYTES]} is there twice")
            self._reading = key[:MAX_NAME_BYTES]
            type_id = self._integer("<I")
            value = self._value(type_id)
            values[key] = value
            if key == ALIGNMENT_KEY:
                alignment = value if type_id == _UINT32 else None
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise GgufFormatError(f"{ALIGNMENT_KEY} = {values[ALIGNMENT_KEY]!r} is not a power of two of type uint32")
        self._reading = "the tensors' directory"
        tensors = self._directory(num_tensors, alignment)
        return GgufHeader(values if self._with_values else {}, tensors)

    def _directory(self, num_tensors: int, alignment: int) -> tuple[GgufTensor, ...]:
        entries = [self._entry() for _ in range(num_tensors)]
        start = -(-self._at // alignment) * alignment
        names = set()
        for name, _, _, offset in entries:
            if name in names:
                raise GgufFormatError(f"tensor {name} is there twice")
            names.add(name)
            if start + offset > self._size:
                raise GgufFormatError(f"tensor {name} begins past the end of the file")
        return tuple(GgufTensor(name, shape, type_id, start + offset) for name, shape, type_id, offset in entries)

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._name("a tensor's name", MAX_NAME_BYTES)
        num_dims = self._integer("<I")
        if not 1 <= num_dims <= MAX_DIMS:
            raise GgufFormatError(f"tensor {name} has {num_dims} dimensions; 1 to {MAX_DIMS} are allowed")
        shape = tuple(reversed([self._integer("<Q") for _ in range(num_dims)]))
        return name, shape, self._integer("<I"), self._integer("<Q")

    def _value(self, type_id: int, depth: int = 0) -> Any:
        if (form := _SCALARS.get(type_id)) is not None:
            return self._unpacked("<" + form, 1)[0]
        if type_id == _STRING:
            return self._texts(1)[0] if self._with_values else self._skip_texts(1)
        if type_id == _ARRAY and depth < MAX_NESTING:
            return self._array(depth + 1)
        if type_id == _ARRAY:
            raise GgufFormatError(f"{self._reading}: arrays are nested more than {MAX_NESTING} deep")
        raise GgufFormatError(f"{self._reading}: metadata of type {type_id} at byte {self._at} is not known")

    def _array(self, depth: int) -> Any:
        item_type, count = self._integer("<I"), self._integer("<Q")
        if item_type not in _LEAST_BYTES:
            raise GgufFormatError(f"{self._reading}: metadata of type {item_type} at byte {self._at} is not known")
        self._check_count(f"{self._reading}, an array,", count, _LEAST_BYTES[item_type], self._items_left)
        self._items_left -= count
        if item_type == _ARRAY:
            self._check_count(f"{self._reading}, an array of arrays,", count, 0, self._arrays_left)
            self._arrays_left -= count
        if (form := _SCALARS.get(item_type)) is not None:
            if self._with_values:
                return list(self._unpacked(f"<{count}{form}", count))
            return self._advance(count * _LEAST_BYTES[item_type])
        if item_type == _STRING:
            return self._texts(count) if self._with_values else self._skip_texts(count)
        return [self._value(item_type, depth) for _ in range(count)]

    def _texts(self, count: int) -> list[str]:
        """As many length-prefixed texts. One loop without calls of ours: vocabularies have 100,000s."""
        texts = []
        data, at, size, unpack = self._data, self._at, self._size, _U64.unpack_from
        left = self._text_left
        for index in range(count):
            start = at + 8
            length = unpack(data, at)[0] if start <= size else size
            at = start + length
            left -= length
            if at > size:
                raise self._ends_inside(length, start)
            if left < 0:
                raise GgufFormatError(f"{self._reading}: the metadata holds more than {MAX_TEXT_BYTES} bytes of text")
            try:
                texts.append(data[start:at].decode())
            except UnicodeDecodeError as error:
                raise GgufFormatError(f"{self._reading}: text {index} is not UTF-8: {error}") from error
        self._at, self._text_left = at, left
        return texts

    def _skip_texts(self, count: int) -> None:
        data, at, size, unpack = self._data, self._at, self._size, _U64.unpack_from
        for _ in range(count):
            start = at + 8
            length = unpack(data, at)[0] if start <= size else size
            at = start + length
            if at > size:
                raise self._ends_inside(length, start)
        self._at = at

    def _check_count(self, what: str, count: int, least_bytes: int, limit: int) -> None:
        left = self._size - self._at
        if count * least_bytes > left:
            raise GgufFormatError(f"{what} has a count of {count}, more than the {left} bytes that are left can hold")
        if count > limit:
            raise GgufFormatError(f"{what} has a count of {count}; at most {limit} are read")

    def _name(self, what: str, max_bytes: int) -> str:
        length = self._integer("<Q")
        if length > max_bytes:
            raise GgufFormatError(f"{what} after {self._reading} has {length} bytes; at most {max_bytes} are allowed")
        raw = self._take(length)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise GgufFormatError(f"{what} after {self._reading} is not UTF-8: {raw[:40]!r}") from error

    def _advance(self, count: int) -> int:
        start = self._at
        if count > self._size - start:
            raise self._ends_inside(count, start)
        self._at = start + count
        return start

    def _ends_inside(self, count: int, start: int) -> GgufFormatError:
        return GgufFormatError(
            f"{self._reading}: the file ends at byte {self._size}, inside a value of {count} bytes at byte {start}"
        )

    def _take(self, count: int) -> bytes:
        start = self._advance(count)
        return self._data[start : start + count]

    def _integer(self, form: str) -> int:
        value: int = self._unpacked(form, 1)[0]
        return value

    def _unpacked(self, form: str, count: int) -> tuple[Any, ...]:
        start = self._advance(struct.calcsize(form))
        return struct.unpack_from(form, self._data, start)
