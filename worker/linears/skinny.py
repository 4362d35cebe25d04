"""Linears whose decode steps of a few rows run in kernels of their own, together with the norm before them.

A step of up to FEW_ROWS rows waits for the weights and for launches; past that the device's library multiplies, as it
does for `pagewire.worker.linears.torch.TorchLinears`. Both kinds read the same weight, [out, in].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from pagewire.worker.kernels.reference import few_rows as definition
from pagewire.worker.kernels.reference.few_rows import FEW_ROWS
from pagewire.worker.linears.torch import TorchLinear, TorchLinears
from pagewire.worker.model.layers import Embedding, Linear, LinearKind, RmsNorm, TableEmbedding

Tensor = torch.Tensor

_WIDEST = 3072
"""Inputs of which FEW_ROWS rows fit into a program's registers beside their weights; of more, one row does. Two rows of
a layer of Qwen3-8B, whose inputs are 4,096, took an H200 1.5 times as long as its library's products."""


_MAX_DIFFERENCE = 0.02
"""Of a trial's result, as a share of what it should be: some roundings of bf16 one after the other."""
_RESULTS = tuple(
    f"{name} of {rows}" for rows in ("one row", f"{FEW_ROWS} rows") for name in ("first sums", "last sums", "logits")
)
_SAID = 300
"""Characters of an error that are passed on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FewRowsKernels:
    """One kind of kernels; see `pagewire.worker.kernels.reference.few_rows` for what each computes."""

    name: str
    overlaps: bool = False
    """Programs start before the kernel before theirs is over."""
    linear: Callable[[Tensor, Tensor, Tensor | None, Tensor], None]
    add_norm_linear: Callable[[Tensor, Tensor, Tensor, float, Tensor, Tensor | None, Tensor, Tensor], None]
    add_norm_gate_up: Callable[[Tensor, Tensor, Tensor, float, Tensor, Tensor | None, Tensor, Tensor], None]


def torch_few_rows_kernels() -> FewRowsKernels:
    """The definitions, on any device."""
    return FewRowsKernels(
        name="few-rows-torch",
        linear=definition.linear,
        add_norm_linear=definition.add_norm_linear,
        add_norm_gate_up=definition.add_norm_gate_up,
    )


def triton_few_rows_kernels(*, overlap: bool) -> FewRowsKernels:
    """`overlap`: a kernel's programs start before the one before it is over, which devices can from sm_90 on. Raises
    ImportError where Triton is not installed."""
    from pagewire.worker.kernels.triton import few_rows

    return FewRowsKernels(
        name="few-rows-overlapped" if overlap else "few-rows",
        overlaps=overlap,
        linear=partial(few_rows.linear, overlap=overlap),
        add_norm_linear=partial(few_rows.add_norm_linear, overlap=overlap),
        add_norm_gate_up=partial(few_rows.add_norm_gate_up, overlap=overlap),
    )


class FewRowsLinear:
    """A `Linear` that also takes x before its norm; what it takes is contiguous."""

    def __init__(
        self, kernels: FewRowsKernels, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype, many_rows: Linear
    ) -> None:
        """`many_rows` multiplies by the same tensors."""
        self.name = kernels.name
        self.num_bytes = many_rows.num_bytes
        self.max_rows = FEW_ROWS if weight.shape[1] <= _WIDEST else 1
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


class FewRowsLinears:
    """A `LinearKind` for one device."""

    def __init__(self, kernels: FewRowsKernels, device: torch.device) -> None:
        self.device = device
        self.overlaps = kernels.overlaps
        self._kernels = kernels
        self._torch = TorchLinears(TorchLinear, device)

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return FewRowsLinear(self._kernels, weight, bias, weight.dtype, self._torch.linear(weight, bias))

    def head(self, weight_VE: Tensor) -> Linear:
        return FewRowsLinear(self._kernels, weight_VE, None, torch.float32, self._torch.head(weight_VE))

    def tied(self, weight_VE: Tensor) -> tuple[Embedding, Linear]:
        return TableEmbedding(weight_VE), self.head(weight_VE)


Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Makes of some work what runs it again, as decode steps are recorded."""


def device_linears(
    candidates: Sequence[FewRowsKernels],
    device: torch.device,
    dtype: torch.dtype,
    new_record: Callable[[], Record],
    refused: Callable[[str], None],
) -> LinearKind:
    """With the first candidate that computes what its definition does on this device; with none if none does. Each is
    recorded by a recorder of its own, because one whose recording failed may be left in any state. `refused` is told
    of each that is not taken, and why."""
    for kernels in candidates:
        reason = trial(kernels, device, dtype, new_record())
        if not reason:
            return FewRowsLinears(kernels, device)
        refused(f"linears of few rows, {kernels.name}: {reason}")
    return TorchLinears(TorchLinear, device)


def trial(kernels: FewRowsKernels, device: torch.device, dtype: torch.dtype, record: Record) -> str:
    """Why these kernels are not to be used on this device; empty where they are.

    A small layer's linears one after the other, so that each reads what the one before it wrote, with one row and with
    as many as they take, recorded; tried because a compiler, a driver or a device may refuse the kernels, their launch,
    or its recording, in its own way."""
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    width, inner = 256, 384
    x, floor = values(FEW_ROWS, width).float(), width * 1e-6
    norm_weight, bias = values(width).float(), values(width)
    o, gate_up, down = values(width, width), values(2 * inner, width), values(width, inner)

    def layer(kind: FewRowsKernels, num_rows: int) -> list[Tensor]:
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
    def both(kind: FewRowsKernels) -> list[Tensor]:
        return [*layer(kind, 1), *layer(kind, FEW_ROWS)]

    computed: list[Tensor] = []

    def work() -> None:
        computed[:] = both(kernels)

    # Weights must be there before a kernel that may start early asks for them.
    _finish(device)
    try:
        record(work)()
        _finish(device)
    except Exception as error:  # what compilers, drivers and launchers raise has no common kind
        return f"{type(error).__name__}: {' '.join(str(error).split())[:_SAID]}"
    for name, ours, theirs in zip(_RESULTS, computed, both(torch_few_rows_kernels()), strict=True):
        difference = float((ours - theirs).norm() / theirs.norm())
        if not difference <= _MAX_DIFFERENCE:
            return f"{name} differ from their definition by {difference:.2g} of their size"
    return ""


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
