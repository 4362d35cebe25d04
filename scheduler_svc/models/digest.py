"""Digests that identify a model's files."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

_MIB = 1024 * 1024
_SAMPLE_BYTES = 64 * 1024
_NUM_SAMPLES = 62


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
