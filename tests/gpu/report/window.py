"""The stretch of a run in which every stream decodes: its speed, and the context that the streams had in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagewire.client.bench.summary import Reading


@dataclass(frozen=True, slots=True)
class DecodeWindow:
    """From the last stream's first token to the first stream's last."""

    num_tokens: int
    seconds: float
    mean_context: float

    @property
    def tokens_per_s(self) -> float:
        """Of all streams together."""
        return self.num_tokens / self.seconds


def decode_window(readings: Sequence[Reading]) -> DecodeWindow:
    """Of streams that ran at once. Raises ValueError where one failed, or no time was common to all."""
    errors = [reading.error or "no token came" for reading in readings if reading.error or not reading.arrivals]
    if errors:
        raise ValueError(f"{len(errors)} of {len(readings)} streams failed: {errors[0]}")
    begin_s = max(reading.arrivals[0][0] for reading in readings)
    end_s = min(reading.arrivals[-1][0] for reading in readings)
    if end_s <= begin_s:
        raise ValueError("the streams were at no time decoding all together")
    num_tokens, contexts = 0, 0.0
    for reading in readings:
        inside = sum(count for time_s, count in reading.arrivals if begin_s < time_s <= end_s)
        before = reading.prompt_tokens + sum(count for time_s, count in reading.arrivals if time_s <= begin_s)
        num_tokens += inside
        contexts += before + inside / 2
    return DecodeWindow(num_tokens, end_s - begin_s, contexts / len(readings))
