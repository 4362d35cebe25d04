"""Model files: the JSON and text that came with a model, bounded in size, and the digests that identify its files.

It knows no file's meaning, and has one kind of error whatever is wrong. A byte-order mark, which some editors put in
front, is passed over in JSON; other encodings than UTF-8 are refused.
"""

import codecs
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pagewire.scheduler_svc.startup_errors import ModelError

MAX_BYTES = 16 * 1024 * 1024
"""Configurations have some KiB; the index of 90,000 tensors has 9 MB."""

_T = TypeVar("_T")

_MIB = 1024 * 1024
_SAMPLE_BYTES = 64 * 1024
_NUM_SAMPLES = 62


def read_bounded(file: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """A small file's content. Raises ModelError where it is larger, OSError where it cannot be read."""
    with file.open("rb") as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ModelError(f"{file} is larger than the {max_bytes} bytes that are read of such a file")
    return content


def decode_json(content: bytes, kind: type[_T], origin: str) -> _T:
    """Decode into the type. Raises ModelError naming `origin`."""
    try:
        return msgspec.json.decode(content.removeprefix(codecs.BOM_UTF8), type=kind)
    except UnicodeDecodeError as error:
        raise ModelError(f"{origin} is not UTF-8: {error}") from error
    except RecursionError as error:
        raise ModelError(f"{origin}: it is nested too deep") from error
    except ValueError as error:  # msgspec's own, and Python's for integers of many digits
        raise ModelError(f"{origin}: {error}") from error


def decode_object(content: bytes, origin: str) -> dict[str, Any]:
    """Every key of a JSON object and its value. Raises ModelError naming `origin`."""
    return decode_json(content, dict[str, Any], origin)


def read_text(file: Path) -> str:
    """The file's text, with line ends as `\\n`. Raises ModelError naming the file, and OSError."""
    content = read_bounded(file)
    if content.startswith(codecs.BOM_UTF8):
        raise ModelError(f"{file} starts with a byte-order mark, which would stand in every prompt; save it without")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"{file} is not UTF-8: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def weights_digest(files: Sequence[Path]) -> str:
    """Digest weights files by sampling: a 16 GB model takes milliseconds, and any two models differ in every sample.

    Over every file, ordered by name: its name and size, its first and last MiB, and 62 samples of 64 KiB that start
    at even distances between; names and sizes are length-prefixed, so that no two lists give the same bytes. A file of
    no more bytes than those samples is read whole. It tells models apart; it is no proof against tampering.
    """
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda path: path.name):
        name = file.name.encode()
        size = file.stat().st_size
        digest.update(len(name).to_bytes(4, "little") + name + size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            if size <= 2 * _MIB + _NUM_SAMPLES * _SAMPLE_BYTES:
                digest.update(stream.read())
                continue
            digest.update(stream.read(_MIB))
            span = size - 2 * _MIB - _SAMPLE_BYTES
            for index in range(_NUM_SAMPLES):
                stream.seek(_MIB + span * index // (_NUM_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
            stream.seek(size - _MIB)
            digest.update(stream.read(_MIB))
    return "sha256-sampled:" + digest.hexdigest()


def sha256_of(content: bytes) -> str:
    """Digest a small file's content, in the form of Model.tokenizer_digest."""
    return "sha256:" + hashlib.sha256(content).hexdigest()
