"""Seeded random weights, for benchmarks of a published shape without its files.

Every tensor is a stretch of one block of normal values, wound round; where it starts depends on the seed and the
tensor's name alone. So a tensor's value depends on nothing but (seed, name, flat index), any slice of it can be made
alone, and 0.6 B parameters cost a copy rather than 0.6 B draws.
"""

import hashlib
from collections.abc import Mapping

import torch

from pagewire.wire.model import DecoderConfig
from pagewire.worker.model.source import decoder_tensors

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

    def copy_to(self, name: str, out: torch.Tensor) -> None:
        if name.endswith("norm.weight"):
            out.fill_(1.0)
            return
        if name.endswith(".bias"):
            out.fill_(0.0)
            return
        if out.dtype not in self._blocks:
            self._blocks[out.dtype] = self._blocks[torch.float32].to(out.dtype)
        block = self._blocks[out.dtype]
        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        offset = int.from_bytes(digest[:8], "little") % BLOCK
        flat = out.view(-1)
        done = 0
        while done < flat.shape[0]:
            count = min(BLOCK - offset, flat.shape[0] - done)
            flat[done : done + count] = block[offset : offset + count]
            done += count
            offset = 0
