"""Skinny linears, of at most MAX_SKINNY_ROWS rows, alone or with the residual add and norm before them.

x, the fp32 sum of the layers, goes to a second tensor where a part is added to it: the kernels' programs each read all
of the old one. The norm is that of `pagewire.worker.kernels.reference.elementwise`, rounded to the weight's dtype as if
it were stored; everything else is fp32 and rounded once, where it is stored. Tensors are contiguous, with weights [out,
in].
"""

import torch
import torch.nn.functional as F

from pagewire.worker.kernels.reference.elementwise import add_rms_norm


def linear(x_TK: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None, out_TN: torch.Tensor) -> None:
    """out = x · weightᵀ + bias. x, weight and bias are in the model's dtype; out is too, or fp32."""
    out_TN.copy_(_product(x_TK, weight_NK, bias_N))


def add_norm_linear(
    x_TE: torch.Tensor,
    delta_TE: torch.Tensor,
    scaled_weight_E: torch.Tensor,
    squared_floor: float,
    weight_NE: torch.Tensor,
    bias_N: torch.Tensor | None,
    new_x_TE: torch.Tensor,
    out_TN: torch.Tensor,
) -> None:
    """new_x = x + delta; out = (new_x normalized) · weightᵀ + bias. x, new_x and the norm's weight are fp32, the rest
    in the model's dtype; new_x shares no memory with x."""
    out_TN.copy_(
        _product(_add_norm(x_TE, delta_TE, scaled_weight_E, squared_floor, weight_NE, new_x_TE), weight_NE, bias_N)
    )


def add_norm_gate_up(
    x_TE: torch.Tensor,
    delta_TE: torch.Tensor,
    scaled_weight_E: torch.Tensor,
    squared_floor: float,
    weight_GE: torch.Tensor,
    bias_G: torch.Tensor | None,
    new_x_TE: torch.Tensor,
    out_TF: torch.Tensor,
) -> None:
    """As add_norm_linear with a weight of G = 2F rows, gate's and then up's; out = silu(gate) · up."""
    h_TE = _add_norm(x_TE, delta_TE, scaled_weight_E, squared_floor, weight_GE, new_x_TE)
    gate_TF, up_TF = _product(h_TE, weight_GE, bias_G).chunk(2, dim=-1)
    out_TF.copy_(F.silu(gate_TF) * up_TF)


def _add_norm(
    x_TE: torch.Tensor,
    delta_TE: torch.Tensor,
    scaled_weight_E: torch.Tensor,
    squared_floor: float,
    weight: torch.Tensor,
    new_x_TE: torch.Tensor,
) -> torch.Tensor:
    h_TE = torch.empty_like(new_x_TE, dtype=weight.dtype)
    new_x_TE.copy_(x_TE)
    add_rms_norm(new_x_TE, delta_TE, scaled_weight_E, squared_floor, h_TE)
    return h_TE


def _product(x_TK: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> torch.Tensor:
    return F.linear(x_TK.float(), weight_NK.float(), None if bias_N is None else bias_N.float())
