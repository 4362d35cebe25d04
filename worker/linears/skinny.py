"""Skinny linears: their decode steps of a few rows run in kernels of their own, together with the norm before them.

A step of up to MAX_SKINNY_ROWS rows waits for the weights and for launches; past that the device's library multiplies,
as it does for `pagewire.worker.linears.torch.TorchLinears`. Both kinds read the same weight, [out, in].
"""

from collections.abc import Callable, Sequence

import torch

from pagewire.worker.kernels.contract import MAX_SKINNY_ROWS, Kernels
from pagewire.worker.kernels.sets import reference_kernels
from pagewire.worker.linears.torch import TorchLinear, TorchLinears
from pagewire.worker.model.layers import Embedding, Linear, LinearKind, RmsNorm, TableEmbedding

Tensor = torch.Tensor

_WIDEST = 3072
"""Inputs of which MAX_SKINNY_ROWS rows fit into a program's registers beside their weights; of more, one row does. Two
rows of a layer of Qwen3-8B, whose inputs are 4,096, took an H200 1.5 times as long as its library's products."""


MAX_DIFFERENCE = 0.02
"""Of a trial's result, as a share of what it should be: some roundings of bf16 one after the other."""
_RESULTS = tuple(
    f"{name} of {rows}"
    for rows in ("one row", f"{MAX_SKINNY_ROWS} rows")
    for name in ("first sums", "last sums", "logits")
)
SAID = 300
"""Characters of an error that are passed on."""


class SkinnyLinear:
    """A `Linear` that also takes x before its norm; what it takes is contiguous."""

    def __init__(
        self, kernels: Kernels, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype, many_rows: Linear
    ) -> None:
        """`many_rows` multiplies by the same tensors."""
        self.name = f"skinny-{kernels.name}"
        self.num_bytes = many_rows.num_bytes
        self.max_rows = MAX_SKINNY_ROWS if weight.shape[1] <= _WIDEST else 1
        """More go to `many_rows`."""
        self._kernels = kernels
        self._weight = weight
        self._bias = bias
        self._out_dtype = out_dtype
        self._many_rows = many_rows

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[0] > self.max_rows:
            return self._many_rows(x)
        out = self._new_out(x)
        self._kernels.linear(x, self._weight, self._bias, out)
        return out

    def of_sum(self, x_TE: Tensor, delta_TE: Tensor, norm: RmsNorm, new_x_TE: Tensor) -> Tensor:
        """The linear of x + delta normalized, for at most max_rows rows; x + delta goes to new_x."""
        out = self._new_out(x_TE)
        self._kernels.add_norm_linear(
            x_TE, delta_TE, norm.scaled_weight, norm.squared_floor, self._weight, self._bias, new_x_TE, out
        )
        return out

    def gated_of_sum(self, x_TE: Tensor, delta_TE: Tensor, norm: RmsNorm, new_x_TE: Tensor, out_TF: Tensor) -> None:
        """out = silu(gate) · up of the same, where the outputs are gate and up."""
        self._kernels.add_norm_gate_up(
            x_TE, delta_TE, norm.scaled_weight, norm.squared_floor, self._weight, self._bias, new_x_TE, out_TF
        )

    def _new_out(self, x: Tensor) -> Tensor:
        return x.new_empty((x.shape[0], self._weight.shape[0]), dtype=self._out_dtype)


class SkinnyLinears:
    """A `LinearKind` for one device."""

    def __init__(self, kernels: Kernels, device: torch.device) -> None:
        self.device = device
        self._kernels = kernels
        self._torch = TorchLinears(TorchLinear, device)

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return SkinnyLinear(self._kernels, weight, bias, weight.dtype, self._torch.linear(weight, bias))

    def head(self, weight_VE: Tensor) -> Linear:
        return SkinnyLinear(self._kernels, weight_VE, None, torch.float32, self._torch.head(weight_VE))

    def tied(self, weight_VE: Tensor) -> tuple[Embedding, Linear]:
        return TableEmbedding(weight_VE), self.head(weight_VE)


Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Makes of some work what runs it again, as decode steps are captured."""


def choose_kernels(
    candidates: Sequence[Kernels],
    device: torch.device,
    dtype: torch.dtype,
    new_capture: Callable[[], Capture],
    refused: Callable[[str], None],
) -> tuple[Kernels, LinearKind]:
    """The first candidate whose linears compute what the definition does on this device, and these linears; where none
    does, the last candidate, for all else, and the library's linears. What the trial shows of the linears' launches is
    true of the other kernels'.

    Each is captured by a capture of its own, because one that failed may be left in any state. `refused` is told of
    each that is not taken, and why."""
    for kernels in candidates:
        reason = trial(kernels, device, dtype, new_capture())
        if not reason:
            return kernels, SkinnyLinears(kernels, device)
        refused(f"skinny linears, {kernels.name}: {reason}")
    return candidates[-1], TorchLinears(TorchLinear, device)


def trial(kernels: Kernels, device: torch.device, dtype: torch.dtype, capture: Capture) -> str:
    """Why these kernels are not to be used on this device; empty where they are.

    A small layer's linears one after the other, so that each reads what the one before it wrote, with one row and with
    as many as they take, captured; tried because a compiler, a driver or a device may refuse the kernels, their launch,
    or its capture, in its own way."""
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    width, inner = 256, 384
    x, floor = values(MAX_SKINNY_ROWS, width).float(), width * 1e-6
    norm_weight, bias = values(width).float(), values(width)
    o, gate_up, down = values(width, width), values(2 * inner, width), values(width, inner)

    def layer(kind: Kernels, num_rows: int) -> list[Tensor]:
        def empty(num_outputs: int, out_dtype: torch.dtype) -> Tensor:
            return torch.empty((num_rows, num_outputs), dtype=out_dtype, device=device)

        new_x, last_x, logits = (empty(width, torch.float32) for _ in range(3))
        delta, back, y = (empty(width, dtype) for _ in range(3))
        gated = empty(inner, dtype)
        kind.linear(x[:num_rows].to(dtype), o, bias, delta)
        kind.add_norm_gate_up(x[:num_rows], delta, norm_weight, floor, gate_up, None, new_x, gated)
        kind.linear(gated, down, None, back)
        kind.add_norm_linear(new_x, back, norm_weight, floor, o, bias, last_x, y)
        kind.linear(y, o, None, logits)
        return [new_x, last_x, logits]

    @torch.inference_mode()
    def both(kind: Kernels) -> list[Tensor]:
        return [*layer(kind, 1), *layer(kind, MAX_SKINNY_ROWS)]

    computed: list[Tensor] = []

    def work() -> None:
        computed[:] = both(kernels)

    # Weights must be there before a kernel that may start early asks for them.
    finish(device)
    try:
        capture(work)()
        finish(device)
    except Exception as error:  # what compilers, drivers and launchers raise has no common kind
        return f"{type(error).__name__}: {' '.join(str(error).split())[:SAID]}"
    for name, ours, theirs in zip(_RESULTS, computed, both(reference_kernels()), strict=True):
        difference = float((ours - theirs).norm() / theirs.norm())
        if not difference <= MAX_DIFFERENCE:
            return f"{name} differ from their definition by {difference:.2g} of their size"
    return ""


def finish(device: torch.device) -> None:
    """Waits until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
