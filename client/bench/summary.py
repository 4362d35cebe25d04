"""Statistics of a load: what streams brought becomes readings, percentiles and the figures of a result.

    due        first token        token … token          last message
     |---------ttft---|------itl-----|--itl--|
     |                |---- (tokens - 1) x tpot ----|
     |---------------------- e2e -----------------------------|

A message may bring several tokens, where its reader was behind; `itl` is the time between two messages that brought
tokens, which is what a reader sees. All in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from google.protobuf.message import DecodeError

from pagewire.client.bench.session import Trace
from pagewire.v1.inference_pb2 import StreamGenerateResponse


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
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


@dataclass(frozen=True, slots=True)
class Reading:
    """One stream, understood."""

    due_s: float
    arrivals: tuple[tuple[float, int], ...]
    """(time, tokens) of each message that brought tokens."""
    prompt_tokens: int
    cached_tokens: int
    ended_s: float | None
    error: str

    @property
    def tokens(self) -> int:
        """How many came."""
        return sum(count for _, count in self.arrivals)

    @property
    def ttft_ms(self) -> float | None:
        """To the first token."""
        return (self.arrivals[0][0] - self.due_s) * 1000 if self.arrivals else None

    @property
    def tpot_ms(self) -> float | None:
        """Per token after the first."""
        if self.tokens < 2:
            return None
        return (self.arrivals[-1][0] - self.arrivals[0][0]) * 1000 / (self.tokens - 1)

    @property
    def e2e_ms(self) -> float | None:
        """To the end, of a stream that ended well."""
        return None if self.ended_s is None else (self.ended_s - self.due_s) * 1000

    def gaps(self) -> list[tuple[float, float]]:
        """(begin, end) of each wait between two messages with tokens, in seconds."""
        return list(pairwise(time_s for time_s, _ in self.arrivals))


def read(trace: Trace) -> Reading:
    """Parse a stream's messages. A stream that ended without its usage has failed."""
    arrivals: list[tuple[float, int]] = []
    prompt_tokens = cached_tokens = 0
    complete = False
    for time_s, frame in zip(trace.times_s, trace.frames, strict=True):
        try:
            message = StreamGenerateResponse.FromString(frame)
        except DecodeError:  # another service, or another version of this one: its stream has failed
            complete = False
            break
        match message.WhichOneof("event"):
            case "started":
                prompt_tokens, cached_tokens = message.started.prompt_tokens, message.started.cached_tokens
            case "delta":
                arrivals.append((time_s, len(message.delta.tokens)))
            case "usage":
                complete = True
    error = trace.error
    if trace.ended_s is not None and not complete:
        error = "the stream ended without its usage"
    return Reading(
        due_s=trace.due_s,
        arrivals=tuple(arrivals),
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        ended_s=trace.ended_s if complete else None,
        error=error,
    )


@dataclass(frozen=True, slots=True)
class Objective:
    """What a request must keep to, in milliseconds; none is no demand."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None

    def is_met(self, reading: Reading) -> bool:
        """Whether a stream ended well and kept to all of it."""
        return reading.ended_s is not None and all(
            limit is None or seen is None or seen <= limit
            for limit, seen in (
                (self.ttft_ms, reading.ttft_ms),
                (self.tpot_ms, reading.tpot_ms),
                (self.e2e_ms, reading.e2e_ms),
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of one load."""

    requests: int
    failed: int
    errors: tuple[str, ...]
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    messages: int
    """That brought tokens."""
    wall_s: float
    ttft_ms: Distribution
    itl_ms: Distribution
    tpot_ms: Distribution
    e2e_ms: Distribution
    worker_idle_share: float | None = None
    goodput_per_s: float | None = None
    """Requests a second that met the objective."""

    @property
    def output_tokens_per_s(self) -> float:
        """Over the whole of `wall_s`."""
        return self.output_tokens / self.wall_s if self.wall_s > 0 else 0.0

    @property
    def tokens_per_message(self) -> float | None:
        """More than 1 where the client, or the service's side of its streams, is behind."""
        return self.output_tokens / self.messages if self.messages else None

    def as_json(self) -> dict[str, object]:
        """What scripts read."""
        per_message = self.tokens_per_message
        return {
            "requests": self.requests,
            "failed": self.failed,
            "errors": list(self.errors),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "wall_s": round(self.wall_s, 4),
            "output_tokens_per_s": round(self.output_tokens_per_s, 2),
            "tokens_per_message": None if per_message is None else round(per_message, 3),
            "ttft_ms": self.ttft_ms.as_json(),
            "itl_ms": self.itl_ms.as_json(),
            "tpot_ms": self.tpot_ms.as_json(),
            "e2e_ms": self.e2e_ms.as_json(),
            "worker_idle_share": None if self.worker_idle_share is None else round(self.worker_idle_share, 4),
            "goodput_per_s": None if self.goodput_per_s is None else round(self.goodput_per_s, 3),
        }


_MAX_ERRORS = 5


def summarize(
    readings: Sequence[Reading],
    window: tuple[float, float] | None = None,
    *,
    worker_idle_share: float | None = None,
    objective: Objective | None = None,
) -> Summary:
    """Of whole streams; with a `window`, of what came in it, whenever its stream began."""
    if window is None:
        ends = [reading.ended_s for reading in readings if reading.ended_s is not None]
        ends += [reading.arrivals[-1][0] for reading in readings if reading.arrivals]
        dues = [reading.due_s for reading in readings]
        window = (min(dues, default=0.0), max(ends + dues, default=0.0))
    begin_s, end_s = window
    arrivals = [arrival for reading in readings for arrival in reading.arrivals if begin_s <= arrival[0] <= end_s]
    starters = [reading for reading in readings if begin_s <= reading.due_s <= end_s]
    done = [reading for reading in readings if reading.ended_s is not None and begin_s <= reading.ended_s <= end_s]
    gaps = [gap for reading in readings for gap in reading.gaps() if begin_s <= gap[0] and gap[1] <= end_s]
    errors = [reading.error for reading in readings if reading.error]
    wall_s = end_s - begin_s
    goodput = None
    if objective is not None and wall_s > 0:
        goodput = sum(map(objective.is_met, done)) / wall_s
    return Summary(
        requests=len(starters),
        failed=len(errors),
        errors=tuple(dict.fromkeys(errors))[:_MAX_ERRORS],
        prompt_tokens=sum(reading.prompt_tokens for reading in starters),
        cached_tokens=sum(reading.cached_tokens for reading in starters),
        output_tokens=sum(count for _, count in arrivals),
        messages=len(arrivals),
        wall_s=wall_s,
        ttft_ms=distribution(reading.ttft_ms for reading in starters if reading.ttft_ms is not None),
        itl_ms=distribution((end - start) * 1000 for start, end in gaps),
        tpot_ms=distribution(reading.tpot_ms for reading in done if reading.tpot_ms is not None),
        e2e_ms=distribution(reading.e2e_ms for reading in done if reading.e2e_ms is not None),
        worker_idle_share=worker_idle_share,
        goodput_per_s=goodput,
    )
