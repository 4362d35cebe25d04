"""Masks: what the grammars of one step's rows let come next."""

from dataclasses import dataclass, field

from pagewire.wire.columns import Int32Array


@dataclass(frozen=True, slots=True)
class StepMasks:
    """One step's; rows by their index among the rows that sample."""

    masks: dict[int, Int32Array] = field(default_factory=dict)
    """Bits of the vocabulary's ids, from the lowest of each word up; one that is 0 may not be generated."""
    failures: dict[int, str] = field(default_factory=dict)
    """Rows whose grammar cannot go on, and why."""
