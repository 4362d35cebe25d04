"""The attention seam: what the decoder needs of a backend, and nothing of how it works.

The decoder writes a layer's keys and values into the cache and then asks for attention, for all rows of the layer at
once. So sequences of one step may share blocks that the step itself fills. Backends read the cache in place and never
write it.

On a CUDA device a step of decodes alone is captured in a graph, `begin` included: it and `attend` read no tensor back
and launch nothing according to a value on the device. What the graph allocates in them it keeps.
"""

from typing import Protocol

import torch

from pagewire.worker.attention.batch import Batch
from pagewire.worker.attention.kv_cache import KVCache


class AttentionStep(Protocol):
    """Attention for one batch: whatever a backend can work out once and use in every layer. Valid as long as the
    batch is."""

    def attend(self, layer: int, q_THD: torch.Tensor) -> torch.Tensor:
        """Causal attention of every row over its own sequence's context in the cache, this step's rows included.

        q may be a strided view with a contiguous last dimension. Returns [T, H, D] in q's dtype, valid until the next
        call. Scores are scaled by 1 / sqrt(D).
        """


class AttentionBackend(Protocol):
    """A kind of attention, chosen once at start."""

    @property
    def name(self) -> str:
        """For reports and for choosing it by name."""

    @property
    def block_size_multiple(self) -> int:
        """It takes block sizes that are multiples of this."""

    @property
    def default_block_size(self) -> int:
        """The block size it does best with."""

    def begin(self, batch: Batch, kv: KVCache) -> AttentionStep:
        """Prepares one step."""


def block_size_of(backend: AttentionBackend, wanted: int | None) -> int:
    """The block size that is wanted, or the backend's own. Raises ValueError for one that it does not take."""
    block_size = backend.default_block_size if wanted is None else wanted
    if block_size % backend.block_size_multiple:
        raise ValueError(
            f"block_size is {block_size}; attention backend {backend.name} takes multiples of "
            f"{backend.block_size_multiple}"
        )
    return block_size
