"""Tensor sources: where a model's tensors come from; and safetensors files as one.

Every source speaks the names and shapes of Hugging Face's checkpoints (`pagewire.wire.tensors`); a format with other
names translates them. A source gives one tensor at a time into memory of the caller's, so that two copies of a whole
model never exist.

Safetensors files are memory-mapped by their library. A mapping's pages count as the process's memory once they are
read, so a file is opened anew for every tensor and its pages go when the tensor is copied: 0.4 ms each, against the
whole model's size in peak memory.

Whether a head is the embedding is as in transformers: equal tensors are one; where they differ, the files win over the
configuration's flag, and a warning says so. Merged adapters and resized vocabularies leave such files behind.
"""

import logging
from dataclasses import dataclass
from typing import Protocol

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from pagewire.wire.model import DecoderConfig
from pagewire.wire.safetensors_header import SafetensorsDirectory
from pagewire.wire.tensors import EMBEDDING, HEAD, TensorDirectory, WeightsError

_CHUNK_VALUES = 1 << 22
"""Values compared at a time, which bounds the memory."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """A range of a tensor's rows or, of a matrix, of its columns."""

    axis: int
    """0 for rows, 1 for columns."""
    start: int
    stop: int

    @property
    def index(self) -> tuple[slice, ...]:
        """What subscripts a tensor with this part."""
        return (*(slice(None),) * self.axis, slice(self.start, self.stop))


class TensorSource(TensorDirectory, Protocol):
    """A model's tensors, and their values."""

    def copy_to(self, name: str, out: torch.Tensor, part: Part | None = None) -> None:
        """Fills `out`, which has the shape of the tensor or of the part asked for, converting to its dtype. Reads no
        more than that. Raises WeightsError."""


class SafetensorsSource(SafetensorsDirectory):
    """A `TensorSource` over all shards of a checkpoint."""

    def copy_to(self, name: str, out: torch.Tensor, part: Part | None = None) -> None:
        """As `TensorSource.copy_to`."""
        try:
            with safe_open(self.file_of(name), framework="pt") as handle:
                out.copy_(handle.get_tensor(name) if part is None else handle.get_slice(name)[part.index])
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"cannot read {self.describe(name)}: {error}") from error


def settle_tying(source: TensorSource, config: DecoderConfig, dtype: torch.dtype) -> DecoderConfig:
    """The configuration, untied where the source's head, read in `dtype`, is another than its embedding. The source's
    tensors have been checked."""
    if not config.tie_word_embeddings or HEAD not in source.shapes or _is_tied(source, dtype):
        return config
    _log.warning(
        "tie_word_embeddings is true, but %s is not the embedding: it is used as it is, as transformers does. Say "
        "tie_word_embeddings = false in config.json to have this warning no more",
        source.describe(HEAD),
    )
    return msgspec.structs.replace(config, tie_word_embeddings=False)


def _is_tied(source: TensorSource, dtype: torch.dtype) -> bool:
    num_rows, width = source.shapes[EMBEDDING]
    chunk_rows = max(1, _CHUNK_VALUES // width)
    for start in range(0, num_rows, chunk_rows):
        part = Part(0, start, min(start + chunk_rows, num_rows))
        rows = [torch.empty(part.stop - part.start, width, dtype=dtype) for _ in range(2)]
        for name, out in zip((EMBEDDING, HEAD), rows, strict=True):
            source.copy_to(name, out, part)
        if not torch.equal(*rows):
            return False
    return True
