"""Linears in int8, which `--quantization int8` asks for: half of what bf16 has to read, and half of its arithmetic.

Weights are symmetric per output channel, activations symmetric per token and quantized as they come, so nothing is
calibrated. Before that, both sides are rotated: every 64 neighbours along `in` are multiplied by the Hadamard matrix of
that size. The product stays the same, and the few channels that stand far out of a token's values, which would set the
step for all of them, are spread over 64. Where a model ties its head to the embedding, the head is int8 and the
embedding keeps a table of its own in the model's dtype.

What was tried instead, with perplexities and times, stands in this folder's README.
"""

import ctypes
from functools import cache
from typing import ClassVar

import torch

from pagewire.worker.linears.native import NativeLinears
from pagewire.worker.model.layers import Embedding, Linear, TableEmbedding
from pagewire.worker.native.library import MAX_INT8_K, ROTATION, Int8LinearArgs, LinearArgs, NativeLibrary
from pagewire.worker.native.memory import Buffer, dtype_code

_LEAST = 1e-30
"""Rows without a larger magnitude become zeros."""


class Int8Unavailable(Exception):
    """This machine cannot run int8 linears: why, in one line."""


class NativeInt8Linears:
    """A `LinearKind` of the native library, and what the linears of one decoder share."""

    def __init__(self, library: NativeLibrary, dtype: torch.dtype) -> None:
        """Raises ValueError for a dtype that is neither float32 nor bfloat16."""
        self.shared = NativeLinears(library, dtype)
        self.device = self.shared.device
        self.rows = Buffer(torch.uint8)

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        """Raises ValueError for a weight with too many inputs."""
        return NativeInt8Linear(self, weight, bias, self.shared.dtype)

    def head(self, weight_VE: torch.Tensor) -> Linear:
        return NativeInt8Linear(self, weight_VE, None, torch.float32)

    def tied(self, weight_VE: torch.Tensor) -> tuple[Embedding, Linear]:
        return TableEmbedding(weight_VE), self.head(weight_VE)


class NativeInt8Linear:
    """A `Linear` whose weight is quantized and packed; linear_int8.h says how."""

    name: ClassVar[str] = "native-int8"

    def __init__(
        self, kind: NativeInt8Linears, weight: torch.Tensor, bias: torch.Tensor | None, out_dtype: torch.dtype
    ) -> None:
        """Packs on the calling thread; several may be made at the same time."""
        self.out_features, self.in_features = weight.shape
        check_depth(self.in_features)
        library, dtype = kind.shared.library, kind.shared.dtype_code
        self._packed = kind.shared.memory.take(library.int8_packed_bytes(self.out_features, self.in_features))
        self._bias = bias
        self.num_bytes = self._packed.nbytes + (0 if bias is None else bias.nbytes)
        weight = weight.contiguous()
        library.pack_int8(weight.data_ptr(), self._packed.data_ptr(), self.out_features, self.in_features, dtype)
        self._kind = kind
        self._out_dtype = out_dtype
        self._row_bytes: int = library.int8_row_bytes(self.in_features)
        self._run = library.linear_int8
        self._args = Int8LinearArgs(
            linear=LinearArgs(
                weight=self._packed.data_ptr(),
                bias=None if bias is None else bias.data_ptr(),
                k=self.in_features,
                n=self.out_features,
                dtype=dtype,
                out_dtype=dtype_code(out_dtype),
            )
        )
        self._args_ref = ctypes.byref(self._args)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        args = self._args.linear
        num_rows = x.shape[0]
        out = self._kind.shared.result(num_rows, self.out_features, self._out_dtype)
        args.x = x.data_ptr()
        args.x_stride = x.stride(0)
        args.out = out.data_ptr()
        args.num_rows = num_rows
        self._args.rows = self._kind.rows.take(num_rows, self._row_bytes).data_ptr()
        self._run(self._args_ref)
        return out


class OneDnnInt8Linears:
    """A `LinearKind` of torch's oneDNN operators, with the same arithmetic but for the order in which rotations add."""

    device = torch.device("cpu")

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        """Raises ValueError for a weight with too many inputs."""
        return OneDnnInt8Linear(weight, bias)

    def head(self, weight_VE: torch.Tensor) -> Linear:
        return self.linear(weight_VE, None)

    def tied(self, weight_VE: torch.Tensor) -> tuple[Embedding, Linear]:
        return TableEmbedding(weight_VE), self.linear(weight_VE, None)


class OneDnnInt8Linear:
    """A `Linear` whose weight is quantized, in oneDNN's layout. Activations are unsigned with a zero point of 128: on
    signed ones, one row of a small model took seconds."""

    name: ClassVar[str] = "onednn-int8"
    _PACK_ROWS = 512
    """Rows of the weight that are quantized at a time, so that no copy of a whole one exists in fp32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        check_depth(weight.shape[1])
        pieces = [
            quantized(weight[start : start + self._PACK_ROWS]) for start in range(0, weight.shape[0], self._PACK_ROWS)
        ]
        values = torch.cat([values.to(torch.int8) for values, _ in pieces])
        self._scale = torch.cat([step for _, step in pieces]).flatten() / ROTATION
        self._zero = torch.zeros(len(values), dtype=torch.int32)
        self._bias = None if bias is None else bias.float()
        self.num_bytes = values.nbytes + self._scale.nbytes + self._zero.nbytes
        self.num_bytes += 0 if self._bias is None else self._bias.nbytes
        self._packed = _packed(values)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        values, step = quantized(x)
        rows = (values + 128).to(torch.uint8)
        y = _multiply(rows, self._packed, self._scale, self._zero)
        y *= step
        if self._bias is not None:
            y += self._bias
        return y.to(x.dtype)


def check_depth(in_features: int) -> None:
    """Raises ValueError where sums could pass 32 bits."""
    if in_features > MAX_INT8_K:
        raise ValueError(f"a linear has {in_features} inputs; int8 takes at most {MAX_INT8_K}")


@cache
def _hadamard() -> torch.Tensor:
    """[ROTATION, ROTATION] of 1 and -1."""
    matrix = torch.ones(1, 1)
    while len(matrix) < ROTATION:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix


def rotated(x: torch.Tensor) -> torch.Tensor:
    """[T, in] times ROTATION's Hadamard matrix along `in`, in fp32, filled up with zeros to whole rotations."""
    missing = -x.shape[1] % ROTATION
    values = torch.nn.functional.pad(x.float(), (0, missing)) if missing else x.float()
    return (values.view(-1, ROTATION) @ _hadamard()).view(values.shape)


def quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, in] rotated, as whole numbers from -127 to 127 in fp32, and each row's step [T, 1]. A row that is not finite
    has a step that is not."""
    values = rotated(x)
    largest = values.abs().amax(dim=1, keepdim=True)
    # Not `127.0 / largest`, by which torch means 127 times the rounded reciprocal.
    steps_per_unit = torch.where(largest >= _LEAST, torch.full_like(largest, 127.0) / largest, 0.0)
    return (values * steps_per_unit).round_(), largest * (1.0 / 127.0)


def _packed(values: torch.Tensor) -> torch.Tensor:
    """int8 [out, in] in oneDNN's layout."""
    packed: torch.Tensor = torch.ops.onednn.qlinear_prepack(values, None)
    return packed


def _multiply(rows: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """(rows - 128) · weightᵀ · scale: uint8 [T, in] → fp32 [T, out]; `zero` is the weight's zero points."""
    y: torch.Tensor = torch.ops.onednn.qlinear_pointwise.default(
        rows, 1.0, 128, packed, scale, zero, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return y


def int8_on_torch() -> OneDnnInt8Linears:
    """For a machine where the native library is not used. Raises Int8Unavailable.

    It is tried once, because the operators are not part of torch's public interface, and because oneDNN's kernels for
    processors without VNNI add in 16 bits, which overflow."""
    rows = torch.tensor([[255], [1]], dtype=torch.uint8).expand(2, ROTATION).contiguous()
    try:
        most = _packed(torch.full((32, ROTATION), 127, dtype=torch.int8))
        product = _multiply(rows, most, torch.ones(32), torch.zeros(32, dtype=torch.int32))
    except (AttributeError, RuntimeError) as error:
        raise Int8Unavailable(
            f"torch has no int8 linears here ({str(error).splitlines()[0]}), and the native library is not in use"
        ) from error
    expected = torch.tensor([[127.0], [-127.0]]) * (127 * ROTATION)
    if not torch.equal(product, expected.expand(2, 32)):
        raise Int8Unavailable(
            "torch's int8 linears overflow on this processor, which has no VNNI instructions, and the native library "
            "is not in use"
        )
    return OneDnnInt8Linears()
