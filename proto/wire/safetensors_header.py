"""The headers of safetensors files: what each tensor is and where it lies.

The supervisor reads them before it starts a process, a worker before it maps the files. Follows the format's
specification (huggingface/safetensors, README.md): a length of 8 bytes, a JSON object, then the tensors' bytes without
a hole.

A file is outside input. The library's own reader makes all objects of a header of up to 100 MB before it looks at one,
and its errors name neither tensor nor key; torch comes with its framework's binding. Here the header is bounded, every
tensor's type, shape and bytes are held against each other and against the file's size, and what is wrong is named. A
list of 90,000 tensors, 9 MB of JSON, takes 0.3 s.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from pagewire.wire.codec import WireError, decode_json
from pagewire.wire.tensors import WeightsError

MAX_HEADER_BYTES = 1 << 24
"""90,000 tensors take 9 MB."""
MAX_TENSORS = 1 << 17
MAX_DIMS = 8
MAX_NAME_CHARACTERS = 1024
READABLE = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}
"""Types that are served, and the bytes of a value."""

_LENGTH_BYTES = 8
_SHOWN_CHARACTERS = 100
_Value = TypeVar("_Value")
_Size = Annotated[int, Meta(ge=0, lt=2**62)]
_Shape = Annotated[list[_Size], Meta(max_length=MAX_DIMS)]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: _Shape
    data_offsets: tuple[_Size, _Size]
    """Of its bytes behind the header: the first, and one behind the last."""


class SafetensorsDirectory:
    """Every tensor of all shards of a checkpoint: a `pagewire.wire.tensors.TensorDirectory`."""

    def __init__(self, files: Sequence[str]) -> None:
        """Reads the headers of all files. Raises WeightsError, which names file and tensor."""
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._file_of: dict[str, str] = {}
        self._files = tuple(files)
        for file in files:
            try:
                self._add(file)
            except OSError as error:
                raise WeightsError(f"cannot read {file}: {error.strerror}") from error
            except WireError as error:
                raise WeightsError(f"cannot read {file}: {error}") from error

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor."""
        return self._shapes

    @property
    def description(self) -> str:
        """The files."""
        return ", ".join(self._files)

    def describe(self, name: str) -> str:
        """The tensor and its file."""
        return f"tensor {name} in {self._file_of[name]}"

    def file_of(self, name: str) -> str:
        """Where the tensor is."""
        return self._file_of[name]

    def _add(self, file: str) -> None:
        header, num_data_bytes = _read(file)
        spans = []
        for name, raw in header.items():
            if name == "__metadata__":
                _in_json(name, raw, dict[str, str])
                continue
            if len(name) > MAX_NAME_CHARACTERS:
                raise WireError(f"tensor {_cut(name)} has a name of over {MAX_NAME_CHARACTERS} characters")
            entry = _in_json(f"tensor {name}", raw, _Entry)
            if name in self._file_of:
                raise WeightsError(f"tensor {name} is in both {self._file_of[name]} and {file}")
            self._shapes[name] = tuple(entry.shape)
            self._file_of[name] = file
            if entry.dtype not in READABLE:
                known = ", ".join(READABLE)
                raise WeightsError(f"{self.describe(name)} has type {_cut(entry.dtype)}; supported are {known}")
            spans.append((*entry.data_offsets, name, _num_bytes(entry)))
        _check_spans(spans, num_data_bytes)


def _read(file: str) -> tuple[dict[str, msgspec.Raw], int]:
    """The header's keys, and how many bytes follow it. Raises WireError, OSError."""
    with open(file, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        prefix = stream.read(_LENGTH_BYTES)
        if len(prefix) < _LENGTH_BYTES:
            raise WireError(f"it has {size} bytes, fewer than the {_LENGTH_BYTES} that a safetensors file begins with")
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER_BYTES:
            raise WireError(f"its header has {length} bytes; at most {MAX_HEADER_BYTES} are read")
        if length > size - _LENGTH_BYTES:
            raise WireError(f"its header has {length} bytes, but the file ends after {size}")
        content = stream.read(length)
    header = _in_json("the header", content, dict[str, msgspec.Raw])
    if len(header) > MAX_TENSORS:
        raise WireError(f"its header has {len(header)} tensors; at most {MAX_TENSORS} are read")
    return header, size - _LENGTH_BYTES - length


def _in_json(what: str, content: bytes | msgspec.Raw, kind: type[_Value]) -> _Value:
    try:
        return decode_json(bytes(content), kind)
    except WireError as error:
        raise WireError(f"{what}: {error}") from error


def _num_bytes(entry: _Entry) -> int:
    number = READABLE[entry.dtype]
    for size in entry.shape:
        number *= size
    return number


def _check_spans(spans: list[tuple[int, int, str, int]], num_data_bytes: int) -> None:
    """`spans` are (first, stop, name, bytes that type and shape make)."""
    end, before = 0, "the header"
    for first, stop, name, num_bytes in sorted(spans):
        what = f"tensor {name}: data_offsets = [{first}, {stop}]"
        if stop - first != num_bytes:
            raise WireError(f"{what} are {stop - first} bytes; its dtype and shape make {num_bytes}")
        if stop > num_data_bytes:
            raise WireError(f"{what} end past the end of the file, which has {num_data_bytes} bytes of tensors")
        if first < end:
            raise WireError(f"{what} overlap {before}, which ends at {end}")
        if first > end:
            raise WireError(f"{what} leave a hole behind {before}, which ends at {end}")
        end, before = stop, f"tensor {name}"
    if end != num_data_bytes:
        raise WireError(f"{num_data_bytes - end} bytes at its end belong to no tensor")


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
