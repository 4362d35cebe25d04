"""Linears of torch's operators, on any device, and of oneDNN's, on a CPU.

On a CPU without the native library, weights are reordered once into the layout that oneDNN's kernels read best. It
is twice to five times as fast as `F.linear`, which reorders on the fly; figures stand in this folder's README.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F

from pagewire.worker.model.layers import Embedding, Linear, TableEmbedding

_CPU = torch.device("cpu")

PACK_ROWS = 32
"""The row count oneDNN is told to choose a layout for. Any count runs on it; 32 suits decoding, and a prefill of 512
rows was no slower than with 512 here."""


class TorchLinear:
    """Plain `F.linear`: any device, any dtype."""

    name: ClassVar[str] = "torch"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.num_bytes = weight.nbytes + (0 if bias is None else bias.nbytes)
        self._weight = weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weight, self._bias)


class Float32Head:
    """A head on a CUDA device: the product's fp32 sums as they are, not rounded to the weight's type. At 256 rows of
    Qwen3-0.6B that is 78 MB more to write and 156 to read, 0.05 ms of an H200's step of 7."""

    name: ClassVar[str] = "torch"

    def __init__(self, weight_VE: torch.Tensor) -> None:
        self.num_bytes = weight_VE.nbytes
        self._weight_EV = weight_VE.t()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.mm(x, self._weight_EV, out_dtype=torch.float32)


class OneDnnLinear:
    """A weight in oneDNN's own layout. It cannot be sliced or read back, so cut it before it comes here."""

    name: ClassVar[str] = "onednn-packed"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.num_bytes = weight.nbytes + (0 if bias is None else bias.nbytes)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACK_ROWS)
        self._bias = bias
        # The overload itself: resolving it by name at every call costs about a microsecond.
        self._linear = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self._linear(x, self._packed, self._bias, "none", [], "")
        return y


class TorchLinears:
    """A `LinearKind` of torch's operators."""

    def __init__(self, linear: type[TorchLinear] | type[OneDnnLinear], device: torch.device = _CPU) -> None:
        self.device = device
        self._linear = linear

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        return self._linear(weight, bias)

    def head(self, weight_VE: torch.Tensor) -> Linear:
        if weight_VE.is_cuda and weight_VE.dtype != torch.float32 and _gives_float32(weight_VE):
            return Float32Head(weight_VE)
        return self._linear(weight_VE, None)

    def tied(self, weight_VE: torch.Tensor) -> tuple[Embedding, Linear]:
        # Rows of what oneDNN packed cannot be looked up, so the matrix stays beside its copy: 57 MB for SmolLM2-135M,
        # 311 MB for Qwen3-0.6B. Decoding one token with the unpacked matrix takes 3.7 ms instead of 0.7, and 11
        # instead of 6.4.
        return TableEmbedding(weight_VE), self.head(weight_VE)


def _gives_float32(weight_VE: torch.Tensor) -> bool:
    """Whether torch multiplies matrices of this type on this device into fp32; tried, because it depends on both."""
    few = weight_VE[:8]
    try:
        return bool(torch.mm(few, few.t(), out_dtype=torch.float32).dtype == torch.float32)
    except (RuntimeError, TypeError):
        return False


def choose_linear(device: torch.device, dtype: torch.dtype) -> type[TorchLinear] | type[OneDnnLinear]:
    """The fastest kind that works on this machine. It is tried once on a small weight, because the operators are not
    part of torch's public interface and may be missing or refuse this processor."""
    if device.type != "cpu":
        return TorchLinear
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            # Without bf16 instructions oneDNN's own bf16 path is slower than torch's.
            return TorchLinear
        weight = torch.eye(32, dtype=dtype)
        x = torch.ones(2, 32, dtype=dtype)
        works = torch.equal(OneDnnLinear(weight, None)(x), x)
    except (AttributeError, RuntimeError):
        return TorchLinear
    return OneDnnLinear if works else TorchLinear
