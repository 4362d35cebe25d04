"""Shards: which part of each tensor a rank holds. Pure, apart from the reading it hands on.

    column-parallel   q, k, v, gate, up      rows of the weight:       a rank computes some of the outputs
    row-parallel      o, down                columns of the weight:    a rank computes a part of every output's sum
    vocabulary        embedding, head        rows, rounded up:         the last rank's part is padded with zeros
    whole             norms, rope factors

A bias after a row-parallel product is the first rank's alone, zeros elsewhere: the parts are added up.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pagewire.wire.model import DecoderConfig
from pagewire.wire.tensors import EMBEDDING, HEAD
from pagewire.worker.weights.source import Part, TensorSource

_COLUMN_PARALLEL = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_ROW_PARALLEL = ("o_proj", "down_proj")
_VOCABULARY = (EMBEDDING, HEAD)


@dataclass(frozen=True, slots=True)
class Rank:
    """One of the processes that share a model."""

    number: int
    """0 … world_size - 1."""
    world_size: int


@dataclass(frozen=True, slots=True)
class VocabularyPart:
    """The token ids whose rows of the embedding and the head a rank holds."""

    start: int
    stop: int
    num_rows: int
    """Rows of the rank's tables, the same on every rank: those past stop - start are zeros."""

    @classmethod
    def of(cls, vocab_size: int, rank: Rank) -> "VocabularyPart":
        """The rank's part: equal parts, rounded up."""
        num_rows = -(-vocab_size // rank.world_size)
        start = min(rank.number * num_rows, vocab_size)
        return cls(start, min(start + num_rows, vocab_size), num_rows)


class ShardedSource:
    """A `TensorSource` of one rank's part of another source's model."""

    def __init__(self, whole: TensorSource, config: DecoderConfig, rank: Rank) -> None:
        """`whole` has the tensors that `config`, the whole model's, needs; what divides has been checked
        (`pagewire.wire.model.local_decoder`)."""
        self._whole = whole
        self._rank = rank
        self._vocabulary = VocabularyPart.of(config.vocab_size, rank)
        self._shapes = {name: self._local_shape(name, shape) for name, shape in whole.shapes.items()}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    @property
    def description(self) -> str:
        return self._whole.description

    def describe(self, name: str) -> str:
        return self._whole.describe(name)

    def copy_to(self, name: str, out: torch.Tensor, part: Part | None = None) -> None:
        if part is not None:
            raise ValueError(f"{name}: a part of a rank's part is not read")
        module, kind = _module_of(name)
        if name in _VOCABULARY:
            num_rows = self._vocabulary.stop - self._vocabulary.start
            out[num_rows:].zero_()
            if num_rows:
                self._whole.copy_to(name, out[:num_rows], Part(0, self._vocabulary.start, self._vocabulary.stop))
        elif module in _COLUMN_PARALLEL:
            self._whole.copy_to(name, out, self._share(0, out))
        elif module in _ROW_PARALLEL and kind == "weight":
            self._whole.copy_to(name, out, self._share(1, out))
        elif module in _ROW_PARALLEL and self._rank.number:
            out.zero_()
        else:
            self._whole.copy_to(name, out)

    def _share(self, axis: int, out: torch.Tensor) -> Part:
        size = out.shape[axis]
        return Part(axis, self._rank.number * size, (self._rank.number + 1) * size)

    def _local_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        module, kind = _module_of(name)
        if name in _VOCABULARY:
            return (self._vocabulary.num_rows, *shape[1:])
        if module in _COLUMN_PARALLEL:
            return (shape[0] // self._rank.world_size, *shape[1:])
        if module in _ROW_PARALLEL and kind == "weight":
            return (shape[0], shape[1] // self._rank.world_size)
        return shape


def _module_of(name: str) -> tuple[str, str]:
    """The linear and "weight" or "bias": the last two words of a tensor's name."""
    *_, module, kind = ("", *name.split("."))
    return module, kind
