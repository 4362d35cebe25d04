"""What the card does at best, as torch's own operators show it: copied bytes and bf16 products a second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from gpu.report.floors import COPIED_BYTES, Rates

_WARM_UPS = 3
_ROUNDS = 7
_CALLS = 10


def measure(device: torch.device, copy_bytes: int, matmul_size: int) -> Rates:
    """The median of some rounds; the card is otherwise idle."""
    source, target = (torch.ones(copy_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    copy_s = _seconds_of(lambda: target.copy_(source), device)
    a, b = (torch.randn(matmul_size, matmul_size, device=device).to(torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    multiply_s = _seconds_of(lambda: torch.mm(a, b, out=product), device)
    return Rates(bytes_per_s=COPIED_BYTES * copy_bytes / copy_s, flops_per_s=2 * matmul_size**3 / multiply_s)


def name_of(device: torch.device) -> str:
    """The card's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Of one call, several behind each other, so that the host's part does not show."""
    for _ in range(_WARM_UPS):
        call()
    _finish(device)
    rounds = []
    for _ in range(_ROUNDS):
        begin_s = time.perf_counter()
        for _ in range(_CALLS):
            call()
        _finish(device)
        rounds.append((time.perf_counter() - begin_s) / _CALLS)
    return statistics.median(rounds)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
