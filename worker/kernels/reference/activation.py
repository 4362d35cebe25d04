"""The gated activation of the MLP."""

import torch
import torch.nn.functional as F


def silu_mul(gate_up: torch.Tensor, out_TF: torch.Tensor) -> None:
    """out = silu(gate) · up of gate_up [T, 2F] (gate, then up), in fp32 and rounded once."""
    gate_TF, up_TF = gate_up.chunk(2, dim=-1)
    out_TF.copy_(F.silu(gate_TF.float()) * up_TF.float())
