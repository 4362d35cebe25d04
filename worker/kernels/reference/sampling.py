"""Sampling with integers: one token per row of logits, which no order of summation can change.

    temperature 0   the largest logit; the lowest id among equals
    else            weight = floor(2^42 · 2^((logit - largest) · rate)), an integer; rate = log2(e) / temperature
                    top-k keeps the k largest logits, top-p then the fewest largest whose weights sum to at least
                    p of what top-k kept; among equal logits the lower id counts as larger; min-p drops of these
                    what weighs less than that share of the largest, which weighs 2^42
                    the token is the first kept id, in ascending order of ids, at which the running sum of weights
                    passes uniform(seed, position) × (sum of kept weights)

The meaning is that of `pagewire.worker.sampling.sampler`, which sums in floating point: a token may differ only where a
draw, or the border of top-p, falls within a rounding error of an edge. Sums of integers are exact in whatever order
they are formed, so a row's token depends neither on how a row is split among programs nor on the batch around it. What
the integers lose is below 2^-42 of the largest probability per id; a draw has 24 bits.

The uniform is `pagewire.worker.sampling.uniform` on the model's device, to the last bit.

A row that is no distribution (a NaN, an infinity, or nothing but minus infinity) yields NO_TOKEN, for this row alone.
"""

import torch

from pagewire.wire.plan import NO_TOKEN
from pagewire.worker.kernels.contract import DRAW_BITS, LOG2_E, MASS_BITS, MAX_RATE, P_BITS, parameter_S
from pagewire.worker.kernels.workspaces import SamplingWorkspace

_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB


def sample(
    logits_SV: torch.Tensor,
    sampling_SP: torch.Tensor,
    position_S: torch.Tensor,
    out_tokens_S: torch.Tensor,
    *,
    workspace: SamplingWorkspace,
) -> None:
    """One token id, or NO_TOKEN, per row.

    logits_SV      float32 or bfloat16, rows contiguous; only read. V is the workspace's vocabulary.
    sampling_SP    int32: rows of `pagewire.wire.columns.ROW`, contiguous
    position_S     int32 or int64: index that the sampled token takes in its sequence
    out_tokens_S   int32 or int64

    Raises ValueError where these are not of one length, or the workspace is not for them.
    """
    workspace.check(logits_SV, sampling_SP, position=position_S, out_tokens=out_tokens_S)
    temperature_S, top_k_S = parameter_S(sampling_SP, "temperature"), parameter_S(sampling_SP, "top_k")
    top_p_S, seed_S = parameter_S(sampling_SP, "top_p"), parameter_S(sampling_SP, "seed")
    least_S = least_weight(parameter_S(sampling_SP, "min_p"))
    logits_SV = logits_SV.float()
    largest_S = logits_SV.amax(1)  # NaN where the row has one
    greedy_S = logits_SV.argmax(1)
    # Not LOG2_E / temperature_S, which multiplies by a rounded reciprocal.
    rate_S = (torch.full_like(temperature_S, LOG2_E) / temperature_S).clamp(max=MAX_RATE)
    scaled_SV = (logits_SV - largest_S[:, None]) * rate_S[:, None]
    mass_SV = (scaled_SV.exp2() * 2.0**MASS_BITS).to(torch.int64)
    # The largest first, the lower id among equals: what top-k and top-p keep is the head of this order.
    ids_SV = logits_SV.sort(dim=1, descending=True, stable=True).indices
    ranked_SV = mass_SV.gather(1, ids_SV)
    rank_V = torch.arange(logits_SV.shape[1], device=logits_SV.device)
    top_k_S = torch.where(top_k_S == 0, logits_SV.shape[1], top_k_S)
    ranked_SV = torch.where(rank_V < top_k_S[:, None], ranked_SV, 0)
    target_S = top_p_target(ranked_SV.sum(1), top_p_S)
    before_SV = ranked_SV.cumsum(1) - ranked_SV
    is_kept_SV = (before_SV < target_S[:, None]) & (ranked_SV >= least_S[:, None])
    ranked_SV = torch.where(is_kept_SV | (rank_V == 0), ranked_SV, 0)
    running_SV = torch.zeros_like(ranked_SV).scatter_(1, ids_SV, ranked_SV).cumsum(1)
    draw_S = scaled_draw(running_SV[:, -1], uniform_bits(seed_S, position_S))
    drawn_S = (running_SV > draw_S[:, None]).to(torch.uint8).argmax(1)
    tokens_S = torch.where(temperature_S == 0, greedy_S, drawn_S)
    out_tokens_S.copy_(torch.where(largest_S.isfinite(), tokens_S, NO_TOKEN))


def top_p_target(total_S: torch.Tensor, top_p_S: torch.Tensor) -> torch.Tensor:
    """The sum that top-p asks for: ceil(p · total), p to 31 bits below the point, and the total where p is 1."""
    p_S = (top_p_S.to(torch.float64) * 2.0**P_BITS).to(torch.int64)
    high_S, low_S = total_S >> P_BITS, total_S & ((1 << P_BITS) - 1)
    target_S = p_S * high_S + ((p_S * low_S + ((1 << P_BITS) - 1)) >> P_BITS)
    return torch.where(top_p_S < 1, target_S, total_S)


def least_weight(min_p_S: torch.Tensor) -> torch.Tensor:
    """The weight that min-p asks for: ceil(p · 2^42), which is exact in float64."""
    return (min_p_S.to(torch.float64) * 2.0**MASS_BITS).ceil().to(torch.int64)


def scaled_draw(total_S: torch.Tensor, draw_S: torch.Tensor) -> torch.Tensor:
    """floor(draw · total / 2^24), without the product, which would take 86 bits."""
    high_S, low_S = total_S >> DRAW_BITS, total_S & ((1 << DRAW_BITS) - 1)
    return draw_S * high_S + ((draw_S * low_S) >> DRAW_BITS)


def uniform_bits(seed_S: torch.Tensor, position_S: torch.Tensor) -> torch.Tensor:
    """The uniform of each (seed, position) times 2^24: int64 in [0, 2^24). Seeds are int64, the bits of the unsigned
    number; positions int32 or int64."""
    hashed = _mix(_mix(seed_S + _signed(_GAMMA)) + _signed(_GAMMA) * (position_S.to(torch.int64) + 1))
    return _shift(hashed, 40)


def _mix(z: torch.Tensor) -> torch.Tensor:
    z = (z ^ _shift(z, 30)) * _signed(_MULTIPLIER_1)
    z = (z ^ _shift(z, 27)) * _signed(_MULTIPLIER_2)
    return z ^ _shift(z, 31)


def _shift(z: torch.Tensor, count: int) -> torch.Tensor:
    """To the right, filled with zeros: torch's shift of int64 repeats the sign."""
    return (z >> count) & ((1 << (64 - count)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
