"""The embedding: from token ids to the rows that the first layer starts from.

A seam like the linear's: a kind of device, or tensor parallelism, keeps its own kind of table.
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
