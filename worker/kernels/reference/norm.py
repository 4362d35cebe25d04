"""Root-mean-square normalization of x, the fp32 sum of the layers, together with what changes x just before it.

    y = x / sqrt(sum(x²) + floor) · scaled_weight

with scaled_weight = weight · sqrt(E) and floor = E · eps, as `pagewire.worker.model.layers.RmsNorm` holds them.
Everything is fp32 and rounded once, where y is stored.
"""

import torch


def start_rms_norm(
    rows_TE: torch.Tensor,
    x_TE: torch.Tensor,
    scaled_weight_E: torch.Tensor,
    squared_floor: float,
    out_TE: torch.Tensor,
) -> None:
    """x = rows; out = x normalized. rows and out are in the model's dtype, x and the weight fp32; rows are
    contiguous along E."""
    x_TE.copy_(rows_TE)
    out_TE.copy_(_normalized(x_TE, scaled_weight_E, squared_floor))


def add_rms_norm(
    x_TE: torch.Tensor,
    delta_TE: torch.Tensor,
    scaled_weight_E: torch.Tensor,
    squared_floor: float,
    out_TE: torch.Tensor,
) -> None:
    """x += delta; out = x normalized. delta and out are in the model's dtype, x and the weight fp32."""
    x_TE.add_(delta_TE)
    out_TE.copy_(_normalized(x_TE, scaled_weight_E, squared_floor))


def _normalized(x: torch.Tensor, scaled_weight_E: torch.Tensor, squared_floor: float) -> torch.Tensor:
    return x * (x.square().sum(-1, keepdim=True) + squared_floor).rsqrt() * scaled_weight_E
