"""What the speeds are held to: figures for one H200, and on any other card the same shares of its own floors."""

from __future__ import annotations

from dataclasses import dataclass

from gpu.report.checks import Check
from gpu.report.floors import Rates

H200 = Rates(bytes_per_s=4.3e12, flops_per_s=790e12)


@dataclass(frozen=True, slots=True)
class SpeedBound:
    """Least tokens a second on an H200, and the floor there that it was set against."""

    h200_limit: float
    h200_floor: float

    def limit(self, card: str, floor: float) -> float:
        """On a card whose own floor is this."""
        return self.h200_limit if "H200" in card else floor * self.h200_limit / self.h200_floor


WORKLOAD = SpeedBound(25_000, 36_200)
ONE_STREAM = SpeedBound(1_500, 3_280)
PREFILL = SpeedBound(400_000, 790_000)
LARGE = SpeedBound(8_000, 11_100)
MAX_IDLE_SHARE = 0.03
LEAST_SHARE_OF_DIRECT = 0.95


def speed_check(what: str, seen: float, floor: float, bound: SpeedBound, card: str, is_judged: bool) -> Check:
    """A speed in tokens a second."""
    return Check(
        what=what,
        seen=seen,
        unit="tokens/s",
        relation="at least",
        limit=bound.limit(card, floor),
        floor=floor,
        is_judged=is_judged,
    )
