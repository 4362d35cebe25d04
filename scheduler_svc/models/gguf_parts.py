"""A GGUF model as its files: one, or the parts that llama.cpp's `gguf-split` made of it.

The first part holds the metadata, every part some of the tensors. `split.no` counts from 0, names from 1:
`name-00001-of-00003.gguf`. Users name the whole, `name.gguf`, because a part is no model; inside, a model of several
files is known by its first.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pagewire.scheduler_svc.startup_errors import ModelError, shown
from pagewire.wire.gguf_header import GgufFormatError, GgufTensor, read_header

_MAX_PARTS = 1024
_NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


class GgufModel(msgspec.Struct, frozen=True):
    """What the files say before their tensors' data."""

    values: Mapping[str, Any]
    """Metadata of the first."""
    tensors: Mapping[str, GgufTensor]
    """Of all."""


def model_name(path: Path) -> str:
    """What a model in this file is called where nobody says otherwise: the file's name without ending and number."""
    numbered = _NUMBERED.fullmatch(path.name)
    return numbered[1] if numbered and numbered[1] else path.stem


def file_to_read(path: Path) -> Path | None:
    """The file that a user means by `path`: itself, or the first of its parts; none where there is neither. Raises
    ModelError for one part of several, by its name, and where there are parts of two models."""
    numbered = _NUMBERED.fullmatch(path.name)
    if numbered and int(numbered[3]) > 1:
        raise ModelError(
            f"{path} is one part of {int(numbered[3])}, by its name; "
            f"name {path.with_name(numbered[1] + '.gguf')} and all of its parts are read"
        )
    if path.is_file():
        return path
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    firsts = sorted(file for file in beside if _is_first_part(file.name, path.stem))
    if len(firsts) > 1:
        names = " and ".join(first.name for first in firsts)
        raise ModelError(f"{path} has parts of more than one model beside it: {names}")
    return firsts[0] if firsts else None


def _is_first_part(name: str, stem: str) -> bool:
    numbered = _NUMBERED.fullmatch(name)
    return numbered is not None and numbered[1] == stem and int(numbered[2]) == 1


def part_files(path: Path) -> tuple[Path, ...]:
    """The file, and those beside it that its name says are parts of the same model. Raises ModelError where one is
    missing."""
    numbered = _NUMBERED.fullmatch(path.name)
    if numbered is None or int(numbered[2]) != 1 or not 1 <= int(numbered[3]) <= _MAX_PARTS:
        return (path,)
    stem, _, count = numbered.groups()
    files = tuple(path.with_name(f"{stem}-{number:05}-of-{count}.gguf") for number in range(1, int(count) + 1))
    for file in files:
        if not file.is_file():
            raise ModelError(f"{path} is one of {len(files)} parts, by its name, and {file} is missing")
    return files


def read_parts(files: tuple[Path, ...]) -> GgufModel:
    """Read the headers of a model's files. Raises ModelError naming the file and what is wrong with it, and OSError."""
    values, tensors = _read(files[0])
    count = _number(values, "split.count", 1, files[0])
    if count > 1 or len(files) > 1:
        _check_part(values, 0, len(files), files[0])
    merged: dict[str, GgufTensor] = {}
    for index, file in enumerate(files):
        if index:
            part_values, tensors = _read(file)
            _check_part(part_values, index, len(files), file)
        for tensor in tensors:
            if tensor.name in merged:
                raise ModelError(f"tensor {tensor.name} in {file} is in another part of the model too")
            merged[tensor.name] = tensor
    expected = _number(values, "split.tensors.count", len(merged), files[0])
    if expected != len(merged):
        raise ModelError(
            f"{files[0]}: split.tensors.count = {expected}, and the {len(files)} parts hold {len(merged)} tensors"
        )
    return GgufModel(values, merged)


def _check_part(values: Mapping[str, Any], index: int, count: int, file: Path) -> None:
    number, of = _number(values, "split.no", 0, file), _number(values, "split.count", 1, file)
    if number == index and of == count:
        return
    if count == 1 and number:
        raise ModelError(
            f"{file} is one part of several (split.no = {number}, split.count = {of}); all of them must stand beside "
            f"each other as NAME-00001-of-{of:05}.gguf and so on, and the model is NAME.gguf"
        )
    if count == 1:
        raise ModelError(
            f"{file} is the first of several parts (split.count = {of}), and its name does not say where the others "
            f"are; it must end in -00001-of-{of:05}.gguf, with the others beside it"
        )
    raise ModelError(
        f"{file}: split.no = {number} and split.count = {of}; its name says {index} (counted from 0) and {count}"
    )


def _read(file: Path) -> tuple[Mapping[str, Any], tuple[GgufTensor, ...]]:
    try:
        header = read_header(file)
    except GgufFormatError as error:
        raise ModelError(f"{file} is not a GGUF file that can be read: {error}") from error
    return header.values, header.tensors


def _number(values: Mapping[str, Any], key: str, default: int, file: Path) -> int:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelError(f"{file}: {key} = {shown(value)} must be an integer")
    return value
