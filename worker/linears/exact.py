"""Exact linears: a device's own kernel multiplies any number of rows, and a row's bits do not depend on how many there
are.

A library's products choose their tiles, and whether they split the width, by the number of rows: the same row comes to
other last bits in a prompt than where it decodes, and beside other rows than alone. What this costs stands in the
README of `pagewire.worker.cuda`.
"""

from collections.abc import Callable, Sequence

import torch

from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.kernels.sets import reference_kernels
from pagewire.worker.linears.skinny import MAX_DIFFERENCE, SAID, Capture, finish
from pagewire.worker.model.layers import Embedding, Linear, LinearKind, TableEmbedding

Tensor = torch.Tensor

_TRIED_ROWS = (1, 2, 64, 65, 512, 513, 640)
"""Of a trial: at both sides of the numbers where the kernel's tiles change, the most last."""
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


def choose_exact(
    candidates: Sequence[Kernels],
    device: torch.device,
    dtype: torch.dtype,
    new_capture: Callable[[], Capture],
    refused: Callable[[str], None],
) -> tuple[Kernels, LinearKind]:
    """The first candidate that passes its trial, and its linears; as
    `pagewire.worker.linears.skinny.choose_kernels`, but that none else will do. Raises ValueError where none passes."""
    reason = "there are no exact kernels"
    for kernels in candidates:
        reason = trial(kernels, device, dtype, new_capture())
        if not reason:
            return kernels, ExactLinears(kernels, device)
        refused(f"exact linears, {kernels.name}: {reason}")
    raise ValueError(f"exact_continuation is set, and on this device {reason}")


def trial(kernels: Kernels, device: torch.device, dtype: torch.dtype, capture: Capture) -> str:
    """Why these kernels' linears are not to be used on this device; empty where they are.

    Two of them, the second of which reads what the first wrote, captured, with numbers of rows for which tiles differ:
    that all tiles come to the same bits is a property of the device and of what compiled them."""
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    x, bias = values(max(_TRIED_ROWS), _TRIED_WIDTH), values(_TRIED_WIDTH)
    inner, outer = values(_TRIED_WIDTH, _TRIED_WIDTH) / _TRIED_WIDTH**0.5, values(_TRIED_OUTPUTS, _TRIED_WIDTH)

    def both(kind: Kernels, num_rows: int) -> Tensor:
        first, second = ExactLinear(kind, inner, bias, dtype), ExactLinear(kind, outer, None, torch.float32)
        return second(first(x[:num_rows]))

    computed: list[Tensor] = []

    @torch.inference_mode()
    def work() -> None:
        computed[:] = [both(kernels, num_rows) for num_rows in _TRIED_ROWS]

    finish(device)
    try:
        capture(work)()
        finish(device)
    except Exception as error:  # as in a trial of skinny linears
        return f"{type(error).__name__}: {' '.join(str(error).split())[:SAID]}"
    most = computed[-1]
    for y in computed[:-1]:
        num_differing = int((y != most[: len(y)]).sum())
        if num_differing:
            return f"{num_differing} values of {len(y)} rows differ from the same beside others"
    expected = both(reference_kernels(), len(most))
    difference = float((most - expected).norm() / expected.norm())
    return "" if difference <= MAX_DIFFERENCE else f"values differ from their definition by {difference:.2g} of them"
