"""Exact linears: a device's own kernel multiplies any number of rows, and a row's bits do not depend on how many there
are.

A library's products choose their tiles, and whether they split the width, by the number of rows: the same row comes to
other last bits in a prompt than where it decodes, and beside other rows than alone. What this costs stands in the
README of `pagewire.worker.cuda`.
"""

import torch

from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.model.layers import Embedding, Linear, TableEmbedding

Tensor = torch.Tensor

_TRIED_ROWS = (1, 2, 64, 65, 512, 513, 640)
"""Of a trial: at both sides of the numbers where the kernel's tiles change."""
_TRIED_WIDTH = 336
"""Not a multiple of every tile's depth."""
_TRIED_OUTPUTS = 144


class ExactLinear:
    """A `Linear`; what it takes is contiguous."""

    def __init__(self, kernels: Kernels, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype) -> None:
        self.name = kernels.name
        self.num_bytes = weight.nbytes + (0 if bias is None else bias.nbytes)
        self._kernels = kernels
        self._weight = weight
        self._bias = bias
        self._out_dtype = out_dtype

    def __call__(self, x: Tensor) -> Tensor:
        out = x.new_empty((x.shape[0], self._weight.shape[0]), dtype=self._out_dtype)
        self._kernels.linear(x, self._weight, self._bias, out)
        return out


class ExactLinears:
    """A `LinearKind` for one device, by kernels that are exact."""

    def __init__(self, kernels: Kernels, device: torch.device) -> None:
        self.device = device
        self._kernels = kernels

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return ExactLinear(self._kernels, weight, bias, weight.dtype)

    def head(self, weight_VE: Tensor) -> Linear:
        return ExactLinear(self._kernels, weight_VE, None, torch.float32)

    def tied(self, weight_VE: Tensor) -> tuple[Embedding, Linear]:
        return TableEmbedding(weight_VE), self.head(weight_VE)


@torch.inference_mode()
def trial(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> str:
    """Why a row's bits depend on the number of rows on this device; empty where they do not. Tried because that tiles
    of all sizes come to the same bits is a property of the device and of what compiled them."""
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    x, weight, bias = (
        values(max(_TRIED_ROWS), _TRIED_WIDTH),
        values(_TRIED_OUTPUTS, _TRIED_WIDTH),
        values(_TRIED_OUTPUTS),
    )
    linear = ExactLinear(kernels, weight, bias, torch.float32)
    most = linear(x)
    for num_rows in _TRIED_ROWS:
        num_differing = int((linear(x[:num_rows]) != most[:num_rows]).sum())
        if num_differing:
            return f"{num_differing} values of {num_rows} rows differ from the same beside others"
    return ""
