"""Seeded random weights, for benchmarks of a published shape without its files.

Every tensor is a stretch of one block of normal values, wound round; where it starts depends on the seed and the
tensor's name alone. So a tensor's value depends on nothing but (seed, name, flat index), any slice of it can be made
alone, and 0.6 B parameters cost a copy rather than 0.6 B draws.
"""

import hashlib
from collections.abc import Mapping

import torch

from pagewire.wire.model import DecoderConfig
from pagewire.wire.tensors import decoder_tensors
from pagewire.worker.weights.source import Part

BLOCK = 4_194_301
"""Values drawn. A prime, so that no row length divides it and no two rows of a matrix are the same stretch; and large
enough that rows of one matrix overlap little."""
STD = 0.02
"""Standard deviation of the weights, the families' own initializer range."""


class RandomSource:
    """A `TensorSource` that fits its configuration by construction. Norm weights are 1, biases 0."""

    def __init__(self, config: DecoderConfig, seed: int) -> None:
        self._shapes = decoder_tensors(config)
        self._seed = seed
        generator = torch.Generator().manual_seed(seed & (2**63 - 1))
        block = torch.empty(BLOCK, dtype=torch.float32).normal_(0.0, STD, generator=generator)
        self._blocks = {torch.float32: block}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    @property
    def description(self) -> str:
        return f"random weights of seed {self._seed}"

    def describe(self, name: str) -> str:
        return f"tensor {name} of {self.description}"

    def copy_to(self, name: str, out: torch.Tensor, part: Part | None = None) -> None:
        if name.endswith("norm.weight"):
            out.fill_(1.0)
            return
        if name.endswith(".bias"):
            out.fill_(0.0)
            return
        if out.dtype not in self._blocks:
            self._blocks[out.dtype] = self._blocks[torch.float32].to(out.dtype)
        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        offset = int.from_bytes(digest[:8], "little") % BLOCK
        num_columns = self._shapes[name][-1]
        if part is not None and part.axis == 1:
            self._copy_columns(out, offset + part.start, num_columns)
        else:
            first_row = 0 if part is None else part.start
            self._copy_stretch(out.view(-1), offset + first_row * num_columns)

    def _copy_stretch(self, flat: torch.Tensor, offset: int) -> None:
        """Fills a vector with the block's values from `offset` on, wound round."""
        block = self._blocks[flat.dtype]
        done = 0
        while done < flat.shape[0]:
            start = (offset + done) % BLOCK
            count = min(BLOCK - start, flat.shape[0] - done)
            flat[done : done + count] = block[start : start + count]
            done += count

    def _copy_columns(self, out: torch.Tensor, offset: int, stride: int) -> None:
        """Fills a matrix with stretches that begin `stride` values after each other."""
        block = self._blocks[out.dtype]
        num_rows, width = out.shape
        row = 0
        while row < num_rows:
            start = (offset + row * stride) % BLOCK
            # Rows that end before the block does are one strided view of it; the row across its end goes alone.
            count = min(num_rows - row, (BLOCK - start - width) // stride + 1 if start + width <= BLOCK else 0)
            if count:
                out[row : row + count] = block.as_strided((count, width), (stride, 1), start)
            else:
                self._copy_stretch(out[row], start)
            row += max(1, count)
