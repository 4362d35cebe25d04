"""A decode step's linears alone, layer after layer, as a model of a published shape has them: each reads what the one
before it wrote."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pagewire.wire.model import DecoderConfig
from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.linears.skinny import SkinnyLinear
from pagewire.worker.linears.torch import TorchLinear

Tensor = torch.Tensor
_POISON = 0xFF
"""Every value made of such bytes is NaN."""


def most_rows(kernels: Kernels, weight: Tensor) -> int:
    """That the decoder gives to these kernels for this weight."""
    return SkinnyLinear(kernels, weight, None, weight.dtype, TorchLinear(weight, None)).max_rows


class Chain:
    """Weights of some layers and of the head, and what a step of a few rows writes."""

    def __init__(self, config: DecoderConfig, num_layers: int, dtype: torch.dtype, device: torch.device) -> None:
        c = config
        self.config, self.num_layers, self._dtype, self._device = c, num_layers, dtype, device
        self.attended = c.num_heads * c.head_dim
        self.qkv_width = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
        self._generator = torch.Generator(device).manual_seed(0)
        width, inner = c.hidden_size, c.intermediate_size
        self.layers = [
            (
                self._weight(self.qkv_width, width),
                self._weight(width, self.attended),
                self._weight(2 * inner, width),
                self._weight(width, inner),
            )
            for _ in range(num_layers)
        ]
        self.head = self._weight(c.vocab_size, width)
        # Times the root of the mean square, not the sum of squares: the norm's weight has the root of the width in it.
        self._norm = torch.full((width,), width**0.5, device=device)
        self._floor = 1e-6 * width

    @property
    def layer_bytes(self) -> int:
        """Of one layer's weights."""
        return sum(weight.nbytes for weight in self.layers[0])

    def inputs(self, num_rows: int, seed: int) -> Tensor:
        """Of the first layer: [num_rows, width], fp32."""
        generator = torch.Generator(self._device).manual_seed(seed)
        return torch.randn(num_rows, self.config.hidden_size, device=self._device, generator=generator)

    def work(self, kernels: Kernels, x: Tensor) -> tuple[Callable[[], None], Tensor, Tensor]:
        """A step over `x`, whose rows may be replaced between two of them; the logits that it writes; and all that it
        writes, as bytes. It begins with poison in all of this, so that what is read too early shows."""
        c, num_rows = self.config, x.shape[0]
        width, inner = c.hidden_size, c.intermediate_size
        small, large = (self._dtype.itemsize, 4)
        sizes = {
            "delta": (width, small),
            "qkv": (self.qkv_width, small),
            "attended": (self.attended, small),
            "gated": (inner, small),
            "first": (width, large),
            "second": (width, large),
            "last": (width, small),
            "logits": (c.vocab_size, large),
        }
        count = sum(-(-columns * size * num_rows // 256) * 256 for columns, size in sizes.values())
        arena = torch.zeros(count, dtype=torch.uint8, device=self._device)
        views, start = {}, 0
        for name, (columns, size) in sizes.items():
            num_bytes = columns * size * num_rows
            dtype = torch.float32 if size == large and name in ("first", "second", "logits") else self._dtype
            views[name] = arena[start : start + num_bytes].view(dtype).view(num_rows, columns)
            start += -(-num_bytes // 256) * 256
        delta, qkv, attended, gated = (views[name] for name in ("delta", "qkv", "attended", "gated"))
        first, second, last, logits = (views[name] for name in ("first", "second", "last", "logits"))

        def linear(values: Tensor, weight: Tensor, out: Tensor) -> None:
            if most_rows(kernels, weight) < num_rows:
                torch.mm(values, weight.T, out=out)
            else:
                kernels.linear(values, weight, None, out)

        def step() -> None:
            arena.fill_(_POISON)
            delta.zero_()
            before, after = x, first
            for qkv_weight, o, gate_up, down in self.layers:
                kernels.add_norm_linear(before, delta, self._norm, self._floor, qkv_weight, None, after, qkv)
                attended.copy_(qkv[:, : self.attended])  # a kernel that knows nothing of early starts, as attention is
                linear(attended, o, delta)
                before, after = after, second if after is first else first
                kernels.add_norm_gate_up(before, delta, self._norm, self._floor, gate_up, None, after, gated)
                linear(gated, down, delta)
                before, after = after, second if after is first else first
            last.copy_(before)
            kernels.linear(last, self.head, None, logits)

        return step, logits, arena

    def _weight(self, num_outputs: int, width: int) -> Tensor:
        drawn = torch.randn(num_outputs, width, device=self._device, generator=self._generator)
        return (drawn / width**0.5).to(self._dtype)
