"""The linear layer: the seam behind which a device or a number format keeps its own kind of weights.

A `Linear` is anything that maps [T, in] to [T, out] in the model's dtype. It knows neither its place in the model nor
tensor parallelism, which wraps or replaces linears from outside. A `LinearKind` makes them; `worker/linears` has the
kinds.
"""

from typing import Protocol

import torch

from pagewire.worker.model.embedding import Embedding


class Linear(Protocol):
    """y = x · weightᵀ + bias."""

    @property
    def name(self) -> str:
        """Which kind this is, for reports."""

    num_bytes: int
    """Memory its weight and bias take."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, in] → [T, out] in the dtype of x, or a head's in float32; valid until the next call of any linear of the
        decoder."""


class LinearKind(Protocol):
    """Makes a model's linears. Several threads may call it at the same time."""

    @property
    def device(self) -> torch.device:
        """Where all of the decoder's weights belong; what the others get is there already."""

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        """Takes over `weight` [out, in] and `bias` [out], both in the model's dtype; the caller drops its own."""

    def head(self, weight_VE: torch.Tensor) -> Linear:
        """What makes logits. Where it can, it gives them in float32: two of SmolLM2's were 25.25 in bfloat16, whose
        values lie 0.125 apart there, and the wrong one came first."""

    def tied(self, weight_VE: torch.Tensor) -> tuple[Embedding, Linear]:
        """The embedding and the head that share one matrix."""
