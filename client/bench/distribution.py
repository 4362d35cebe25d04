"""Percentiles. Knows nothing of what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Distribution:
    """Median and tail of some samples; all None where there were none."""

    p50: float | None
    p90: float | None
    p99: float | None

    def minus(self, value: float) -> Distribution:
        """Of the samples, each less by so much."""
        p50, p90, p99 = (None if each is None else each - value for each in (self.p50, self.p90, self.p99))
        return Distribution(p50, p90, p99)

    def as_json(self) -> dict[str, float | None]:
        """Rounded to thousandths of the unit."""
        values = {"p50": self.p50, "p90": self.p90, "p99": self.p99}
        return {name: None if value is None else round(value, 3) for name, value in values.items()}


def distribution(samples: Iterable[float]) -> Distribution:
    """The samples' percentiles."""
    ordered = sorted(samples)
    if not ordered:
        return Distribution(None, None, None)
    return Distribution(percentile(ordered, 50), percentile(ordered, 90), percentile(ordered, 99))


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of ascending samples, at least one; between two of them in proportion, as numpy's default has it."""
    if not 0 <= percent <= 100:
        raise ValueError(f"percent is {percent}; it must be 0 to 100")
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
