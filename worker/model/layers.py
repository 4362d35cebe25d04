"""Layers that a decoder is made of: the embedding and the linear as seams, and the norm.

A `Linear` is anything that maps [T, in] to [T, out] in the model's dtype, an `Embedding` what maps token ids to the
rows that the first layer starts from. Behind both a device, a number format or tensor parallelism, which replaces them
from outside, keeps its own kind of weights; they know neither their place in the model nor ranks. A `LinearKind` makes
them; `worker/linears` has the kinds.

The norm is root-mean-square normalization in few operations:

    y = x / sqrt(mean(x²) + eps) · weight  =  x / hypot(‖x‖, sqrt(n · eps)) · (weight · sqrt(n))        n values

The right-hand form needs five small operations where `F.rms_norm` runs ten on a CPU (torch 2.13, bf16, 1,024 wide,
between two linears that have emptied the caches: 16 µs against 23 at one row, 29 against 77 at 32 rows).
"""

from typing import Protocol

import torch
import torch.nn.functional as F


class Embedding(Protocol):
    """A table of V rows of E values."""

    num_bytes: int
    """Memory it takes of its own; 0 where another part of the model holds the table."""

    def __call__(self, ids_T: torch.Tensor) -> torch.Tensor:
        """int64 [T] → [T, E] in the model's dtype."""


class TableEmbedding:
    """A plain matrix: any device, any dtype."""

    def __init__(self, table_VE: torch.Tensor) -> None:
        self.num_bytes = table_VE.nbytes
        self._table_VE = table_VE

    def __call__(self, ids_T: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids_T, self._table_VE)


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


class RmsNorm:
    """Normalizes over the last dimension, in fp32 whatever comes in."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        """weight [..., n], broadcast against the input."""
        num_values = weight.shape[-1]
        self.num_bytes = weight.numel() * torch.float32.itemsize
        self.scaled_weight = weight.to(torch.float32) * num_values**0.5
        """Times sqrt(n); contiguous."""
        self.squared_floor = num_values * eps
        """n · eps, which the sum of squares is raised by."""
        self._floor = torch.tensor((num_values * eps) ** 0.5, dtype=torch.float32, device=weight.device)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """A new fp32 tensor of x's shape."""
        x = x.to(torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.div(x, length.hypot_(self._floor)).mul_(self.scaled_weight)
