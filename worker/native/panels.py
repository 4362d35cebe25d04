"""Weights as the native library packs them: in panels, plain or compact.

A panel is some columns of a linear's result (linear.h). Compact panels hold bfloat16 in 12 bits a value, without loss
(linear_compact.h): a product by either kind is the same to the last bit.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from pagewire.worker.native.huge_pages import HugePages
from pagewire.worker.native.library import NativeLibrary
from pagewire.worker.native.memory import dtype_code


class Panels(Protocol):
    """A weight [out, in], packed."""

    memory: torch.Tensor
    """uint8: all of it, and what `LinearArgs.weight` points to."""

    multiply: Callable[[Any], None]
    """The library's function that takes a reference to `LinearArgs` with this weight."""

    def unpack_rows(self, ids: torch.Tensor, out: torch.Tensor) -> None:
        """Rows ids of the weight as it was: int64 [T] to [T, in], contiguous, in the weight's dtype."""


class PlainPanels:
    """Every value as it is, in float32 or bfloat16."""

    def __init__(self, library: NativeLibrary, weight: torch.Tensor, pages: HugePages) -> None:
        """Takes memory of `pages` and packs `weight`, which is contiguous, on the calling thread."""
        self.multiply: Callable[[Any], None] = library.linear
        self._library = library
        self._dtype = dtype_code(weight.dtype)
        num_rows, width = weight.shape
        self.memory = pages.take(library.packed_bytes(num_rows, width, self._dtype))
        library.pack(weight.data_ptr(), self.memory.data_ptr(), num_rows, width, self._dtype)

    def unpack_rows(self, ids: torch.Tensor, out: torch.Tensor) -> None:
        self._library.unpack_rows(
            ids.data_ptr(), ids.shape[0], self.memory.data_ptr(), out.data_ptr(), out.shape[1], self._dtype
        )


class CompactPanels:
    """bfloat16 in 12 bits a value."""

    @staticmethod
    def fit(library: NativeLibrary, weight: torch.Tensor) -> bool:
        """Whether this contiguous weight can be packed so, and the library's instruction set gains by it: it is
        bfloat16, `in` is a multiple of 4, and nearly all values of every panel are zero or have one of 16 exponents,
        as trained and random weights do."""
        return weight.dtype == torch.bfloat16 and library.compactable(weight.data_ptr(), *weight.shape)

    def __init__(self, library: NativeLibrary, weight: torch.Tensor, pages: HugePages) -> None:
        """As `PlainPanels`, of a weight that fits."""
        self.multiply: Callable[[Any], None] = library.linear_compact
        self._library = library
        self.memory = pages.take(library.compact_bytes(*weight.shape))
        library.pack_compact(weight.data_ptr(), self.memory.data_ptr(), *weight.shape)

    def unpack_rows(self, ids: torch.Tensor, out: torch.Tensor) -> None:
        self._library.unpack_compact_rows(
            ids.data_ptr(), ids.shape[0], self.memory.data_ptr(), out.data_ptr(), out.shape[1]
        )
