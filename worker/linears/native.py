"""Linears by the native library, and the embedding that a tied head holds.

A weight is packed once into panels. One kind of memory serves every number of rows, and rows of the weight can still be
looked up, so a tied head needs no copy of its own beside the embedding.

A panel is some columns of a linear's result (linear.h). Compact panels hold bfloat16 in 12 bits a value, without loss
(linear_compact.h): a product by either kind is the same to the last bit.
"""

import ctypes
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch

from pagewire.worker.model.layers import Embedding, Linear
from pagewire.worker.native.library import LinearArgs, NativeLibrary
from pagewire.worker.native.memory import Buffer, HugePages, dtype_code


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


class NativeLinears:
    """A `LinearKind`, and what the linears of one decoder share: the library, the weights' and the results' memory."""

    def __init__(self, library: NativeLibrary, dtype: torch.dtype) -> None:
        """Raises ValueError for a dtype that is neither float32 nor bfloat16."""
        self.library = library
        self.device = torch.device("cpu")
        self.dtype = dtype
        self.dtype_code = dtype_code(dtype)
        self.memory = HugePages()
        self._results: dict[tuple[int, torch.dtype], Buffer] = {}

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        return NativeLinear(self, weight, bias, self.dtype)

    def head(self, weight_VE: torch.Tensor) -> Linear:
        return NativeLinear(self, weight_VE, None, torch.float32)

    def tied(self, weight_VE: torch.Tensor) -> tuple[Embedding, Linear]:
        head = NativeLinear(self, weight_VE, None, torch.float32)
        return TiedEmbedding(head), head

    def pack(self, weight: torch.Tensor) -> Panels:
        """[out, in] in this kind's dtype, on the calling thread."""
        weight = weight.contiguous()
        kind = CompactPanels if CompactPanels.fit(self.library, weight) else PlainPanels
        return kind(self.library, weight, self.memory)

    def result(self, num_rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        """[num_rows, width] of no particular content, the same memory in every call for this width and dtype."""
        buffer = self._results.get((width, dtype))
        if buffer is None:
            buffer = self._results[width, dtype] = Buffer(dtype)
        return buffer.take(num_rows, width)


class NativeLinear:
    """A `Linear` whose weight is packed."""

    name: ClassVar[str] = "native-packed"

    def __init__(
        self, shared: NativeLinears, weight: torch.Tensor, bias: torch.Tensor | None, out_dtype: torch.dtype
    ) -> None:
        """Packs on the calling thread; several may be made at the same time."""
        self.out_features, self.in_features = weight.shape
        self._panels = shared.pack(weight)
        self._bias = bias
        self.num_bytes = self._panels.memory.nbytes + (0 if bias is None else bias.nbytes)
        self._shared = shared
        self._out_dtype = out_dtype
        self._multiply = self._panels.multiply
        self._args = LinearArgs(
            weight=self._panels.memory.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            k=self.in_features,
            n=self.out_features,
            dtype=shared.dtype_code,
            out_dtype=dtype_code(out_dtype),
        )
        self._args_ref = ctypes.byref(self._args)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        args = self._args
        num_rows = x.shape[0]
        out = self._shared.result(num_rows, self.out_features, self._out_dtype)
        args.x = x.data_ptr()
        args.x_stride = x.stride(0)
        args.out = out.data_ptr()
        args.num_rows = num_rows
        self._multiply(self._args_ref)
        return out

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the weight: int64 [T] → [T, in], a new tensor."""
        out = torch.empty((ids.shape[0], self.in_features), dtype=self._shared.dtype)
        self._panels.unpack_rows(ids, out)
        return out


class TiedEmbedding:
    """The `Embedding` whose table is the head's weight."""

    num_bytes = 0

    def __init__(self, head: NativeLinear) -> None:
        self._head = head

    def __call__(self, ids_T: torch.Tensor) -> torch.Tensor:
        return self._head.rows(ids_T)
