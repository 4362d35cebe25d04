"""What a part of the run demands and saw, and what became of the part. Records alone."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

Relation = Literal["at least", "at most"]
Status = Literal["running", "held", "failed", "error", "skipped", "timed out", "not run"]
"""failed: a check does not hold; error: something of the part raised; skipped: this machine lacks what it is about."""

ENDED_WELL = frozenset({"held", "skipped"})


class Check(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """One figure, what it is held to, and what it cannot be better than."""

    what: str
    seen: float | None
    """None: no number, as JSON writes infinity and NaN."""
    unit: str
    relation: Relation | None = None
    limit: float | None = None
    """None: measured, and held to nothing."""
    floor: float | None = None
    """The figure of a card that wastes nothing, in the same unit."""
    is_judged: bool = True
    """False where the machine is not one that the limit is about."""

    @property
    def holds(self) -> bool:
        """Whether the limit is kept; true where there is none. Not so of a figure that is no number."""
        if self.limit is None or self.relation is None:
            return True
        if self.seen is None or not math.isfinite(self.seen):
            return False
        return self.seen >= self.limit if self.relation == "at least" else self.seen <= self.limit


class PartResult(msgspec.Struct, frozen=True, kw_only=True):
    """One part of the run, as far as it got."""

    part: str
    status: Status
    seconds: float = 0.0
    note: str = ""
    checks: list[Check] = []
    figures: dict[str, object] = {}


class Skipped(Exception):
    """What a part is about is not on this machine; the message says what."""


def result_of(part: str, seconds: float, checks: list[Check], figures: dict[str, object]) -> PartResult:
    """Of a part that came to its end."""
    held = all(check.holds for check in checks if check.is_judged)
    return PartResult(part=part, status="held" if held else "failed", seconds=seconds, checks=checks, figures=figures)
