"""Elementwise kernels between a decoder's linears, in torch: the norm, rotation with the KV write, the gated
activation.

Root-mean-square normalization of x, the fp32 sum of the layers, comes together with what changes x just before it:

    y = x / sqrt(sum(x²) + floor) · scaled_weight

with scaled_weight = weight · sqrt(E) and floor = E · eps, as `pagewire.worker.model.layers.RmsNorm` holds them.
Everything is fp32 and rounded once, where it is stored.
"""

import torch
import torch.nn.functional as F


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


def rotate_and_store(
    qkv: torch.Tensor,
    qk_weight_JD: torch.Tensor | None,
    squared_floor: float,
    cos_sin_PD: torch.Tensor,
    positions_T: torch.Tensor,
    kv_positions_T: torch.Tensor,
    kv_layer: torch.Tensor,
) -> None:
    """Turns q in place and writes k and v to the cache.

    qkv             [T, (H + K + K) · D] in the model's dtype, rows contiguous: q heads, k heads, v heads. Afterwards
    the
                    q heads are normalized and turned; the k and v heads are unspecified.
    qk_weight_JD    [H + K, D] fp32, scaled by sqrt(D), the norm's weight of each head of q and k; none where the model
                    has no such norm. squared_floor is D · eps.
    cos_sin_PD      [positions, D] fp32: D/2 cosines, then D/2 sines. The pair (i, i + D/2) is turned.
    positions_T     int64, each inside the table.
    kv_positions_T  int64: block id × P + offset, or -1 for rows that are not written.
    kv_layer        [2, N, K, P, D]: keys, then values.
    """
    _, _, num_kv_heads, block_size, head_dim = kv_layer.shape
    heads = qkv.view(qkv.shape[0], qkv.shape[1] // head_dim, head_dim)
    num_turned = heads.shape[1] - num_kv_heads
    num_heads = num_turned - num_kv_heads
    qk = heads[:, :num_turned].float()
    if qk_weight_JD is not None:
        qk = qk * (qk.square().sum(-1, keepdim=True) + squared_floor).rsqrt() * qk_weight_JD
    cos, sin = cos_sin_PD[positions_T][:, None].chunk(2, dim=-1)
    first, second = qk.chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(qkv.dtype)
    heads[:, :num_heads] = turned[:, :num_heads]
    is_written = kv_positions_T >= 0
    blocks, offsets = kv_positions_T[is_written] // block_size, kv_positions_T[is_written] % block_size
    kv_layer[0, blocks, :, offsets] = turned[is_written, num_heads:]
    kv_layer[1, blocks, :, offsets] = heads[is_written, num_turned:]


def silu_mul(gate_up: torch.Tensor, out_TF: torch.Tensor) -> None:
    """out = silu(gate) · up of gate_up [T, 2F] (gate, then up), in fp32 and rounded once."""
    gate_TF, up_TF = gate_up.chunk(2, dim=-1)
    out_TF.copy_(F.silu(gate_TF.float()) * up_TF.float())
