"""`pagewire.worker.sampling.uniform` on the model's device, to the last bit."""

import torch

_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB


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
