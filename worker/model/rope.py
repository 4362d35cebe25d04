"""Rotary position embedding: the frequencies of each scaling, and the rotation itself.

A head's D values form D / 2 pairs (i, i + D/2), as in Hugging Face's checkpoints; the pair at position p is turned by
p · inv_freq[i]. Frequencies and angles are fp32 and follow the order of operations of transformers'
`modeling_rope_utils.py`, so that they agree to the last bit.

Sources: RoFormer (arXiv 2104.09864); YaRN (arXiv 2309.00071); Llama 3.1's scaling as published with its weights.
"""

import math
from dataclasses import dataclass

import torch

from pagewire.wire.model import DecoderConfig, RopeScaling


@dataclass(frozen=True, slots=True)
class Rotation:
    """The turn of every row of one step, shared by all layers. Both in the dtype of what is turned."""

    cos: torch.Tensor
    """[T, 1, 1, D/2]."""
    sin: torch.Tensor
    """[T, 1, 2, D/2]: -sin for the first of a pair, which is added times the second; +sin for the second."""

    def apply_(self, x_THD: torch.Tensor) -> None:
        """Turns every head of x in place; x may be a strided view whose last two dimensions are contiguous.

        Three operations: 6 µs for one row, where slicing the halves and writing both apart took 15.
        """
        num_rows, num_heads, head_dim = x_THD.shape
        x = x_THD.view(num_rows, num_heads, 2, head_dim // 2)
        swapped = x.flip(2)
        x.mul_(self.cos).addcmul_(swapped, self.sin)


class RotaryEmbedding:
    """Computes rotations for positions: for torch's operators those of a step, for kernels a table."""

    def __init__(self, inv_freq: torch.Tensor, attention_factor: float) -> None:
        """inv_freq [D/2], fp32, on the model's device."""
        self._inv_freq = inv_freq
        self._attention_factor = attention_factor

    def at(self, positions_T: torch.Tensor, dtype: torch.dtype) -> Rotation:
        angles = positions_T[:, None].to(torch.float32) * self._inv_freq
        cos, sin = angles.cos(), angles.sin()
        if self._attention_factor != 1.0:
            cos, sin = cos * self._attention_factor, sin * self._attention_factor
        return Rotation(cos.to(dtype)[:, None, None, :], torch.stack((-sin, sin), dim=1).to(dtype)[:, None])

    def table(self, num_positions: int) -> torch.Tensor:
        """The turns of positions 0 … num_positions - 1 for kernels that look them up: fp32 [num_positions, D], D/2
        cosines and then D/2 sines; on the device of the frequencies."""
        turns = self.at(torch.arange(num_positions, device=self._inv_freq.device), torch.float32)
        return torch.cat((turns.cos[:, 0, 0], turns.sin[:, 0, 1]), dim=1)


def rotary_embedding(config: DecoderConfig, freq_factors: torch.Tensor | None = None) -> RotaryEmbedding:
    """Rotary embedding as the configuration says.

    freq_factors [D/2] divide the unscaled frequencies and replace Llama 3's scaling; a GGUF file carries them where a
    configuration would name `llama3`. Raises ValueError where a scaling lacks a field it needs.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).to(torch.float32) / config.head_dim
    pos_freqs = config.rope_theta**exponents
    inv_freq = 1.0 / pos_freqs
    scaling = config.rope_scaling
    if freq_factors is not None:
        if scaling is not None and scaling.kind != "llama3":
            raise ValueError(f"rope_scaling.kind {scaling.kind!r} cannot be combined with the file's own rope factors")
        return RotaryEmbedding(inv_freq / freq_factors.to(torch.float32), 1.0)
    if scaling is None:
        return RotaryEmbedding(inv_freq, 1.0)
    match scaling.kind:
        case "linear":
            return RotaryEmbedding(inv_freq / scaling.factor, 1.0)
        case "llama3":
            return RotaryEmbedding(_llama3(inv_freq, scaling), 1.0)
        case "yarn":
            factor = scaling.attention_factor
            if factor is None:
                factor = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
            return RotaryEmbedding(_yarn(pos_freqs, config, scaling), factor)


def _required(scaling: RopeScaling, field: str, value: float | None) -> float:
    if value is None:
        raise ValueError(f"rope_scaling.{field} is missing and {scaling.kind} needs it")
    return value


def _llama3(inv_freq: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Long waves are stretched by `factor`, short ones kept, those between blended."""
    low = _required(scaling, "low_freq_factor", scaling.low_freq_factor)
    high = _required(scaling, "high_freq_factor", scaling.high_freq_factor)
    original = _required(scaling, "original_max_position_embeddings", scaling.original_max_position_embeddings)
    wavelength = 2 * math.pi / inv_freq
    is_long = wavelength > original / low
    is_short = wavelength < original / high
    scaled = torch.where(is_long, inv_freq / scaling.factor, inv_freq)
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * scaled / scaling.factor + smooth * scaled
    return torch.where(is_long | is_short, scaled, blended)


def _yarn(pos_freqs: torch.Tensor, config: DecoderConfig, scaling: RopeScaling) -> torch.Tensor:
    """Dimensions that turn often within the original context keep their frequency, those that turn seldom are
    stretched by `factor`, and a linear ramp lies between."""
    original = _required(scaling, "original_max_position_embeddings", scaling.original_max_position_embeddings)
    dim = config.head_dim

    def dimension_of(num_turns: float) -> float:
        return (dim * math.log(original / (num_turns * 2 * math.pi))) / (2 * math.log(config.rope_theta))

    low = max(math.floor(dimension_of(scaling.beta_fast or 32)), 0)
    high: float = min(math.ceil(dimension_of(scaling.beta_slow or 1)), dim - 1)
    if low == high:
        high += 0.001  # as transformers does: a ramp of no width would divide by zero
    ramp = torch.clamp((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    keep = 1 - ramp
    return 1.0 / (scaling.factor * pos_freqs) * (1 - keep) + 1.0 / pos_freqs * keep
