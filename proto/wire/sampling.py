"""Sampling parameters: how a slot's tokens are drawn, each declared once, in `SamplingParams`.

From the declaration follow the record on the wire; the rows that a worker keeps (`columns.ROW`); the limits that a
request, a submission and a plan are held to; the names of a model's defaults. What a parameter does to logits is the
samplers' alone.

To add one: a field here, the same in `pagewire.v1.Sampling`, and what it means in each sampler (`worker/README.md`).
"""

from dataclasses import dataclass
from typing import Annotated, Literal, get_type_hints

import msgspec

_HUNDREDTH = 0.009999999776482582
"""0.01 as float32 has it, which is a little less."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a parameter may be, and as what it is kept."""

    dtype: Literal["<f4", "<i4", "<u8"]
    least: float
    most: float
    in_words: str
    needs_history: bool = False
    """Whether a draw needs to know the tokens before it."""

    def allow(self, value: float) -> bool:
        """Whether it is a number within them; NaN is none."""
        return self.least <= value <= self.most


class SamplingParams(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a slot's tokens are drawn. The draw at position p depends on the logits, these and p alone. A default leaves
    the distribution as it is."""

    temperature: Annotated[float, Limits("<f4", 0, 100, "0 to 100")] = 1.0
    """0 is greedy."""
    top_k: Annotated[int, Limits("<i4", 0, 2**32 - 1, "0 to 2^32 - 1")] = 0
    """0 keeps all, and so does a number that no vocabulary has."""
    top_p: Annotated[float, Limits("<f4", 2.0**-149, 1, "greater than 0, at most 1")] = 1.0
    """1 keeps all. The least is float32's: below it a worker would hold 0."""
    seed: Annotated[int, Limits("<u8", 0, 2**64 - 1, "0 to 2^64 - 1")] = 0
    min_p: Annotated[float, Limits("<f4", 0, 1, "0 to 1")] = 0.0
    """Of what top-k and top-p keep, drops what is less likely than this share of the likeliest; 0 drops none."""
    repetition_penalty: Annotated[float, Limits("<f4", _HUNDREDTH, 100, "0.01 to 100", needs_history=True)] = 1.0
    """Divides positive and multiplies negative logits of ids in prompt or output; 1 changes none."""
    frequency_penalty: Annotated[float, Limits("<f4", -2, 2, "-2 to 2", needs_history=True)] = 0.0
    """Subtracted from an id's logit once for each time it was generated."""
    presence_penalty: Annotated[float, Limits("<f4", -2, 2, "-2 to 2", needs_history=True)] = 0.0
    """Subtracted once from the logit of each id that was generated."""

    @property
    def needs_history(self) -> bool:
        """Whether a draw depends on the tokens before it."""
        return any(getattr(self, name) != neutral for name, neutral in _HISTORY)

    def problem(self) -> str | None:
        """Why nothing can be drawn with these, naming field, value and limit; none where it can. The engine asks before
        it takes a sequence over, and a worker before it admits one."""
        for name, limits in PARAMETERS.items():
            value = getattr(self, name)
            if not limits.allow(value):
                return f"{name} is {value}; its range is {limits.in_words}"
        return None


PARAMETERS: dict[str, Limits] = {
    name: next(part for part in hint.__metadata__ if isinstance(part, Limits))
    for name, hint in get_type_hints(SamplingParams, include_extras=True).items()
}
"""By name, in the order of the record."""

_HISTORY = [
    (name, value)
    for name, value in zip(SamplingParams.__struct_fields__, SamplingParams.__struct_defaults__, strict=True)
    if PARAMETERS[name].needs_history
]
"""Parameters that need the tokens before, each with the value that asks for nothing."""
