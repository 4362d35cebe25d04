"""Cases: two loads of which a service promises something, the long prompt and the cached prefix.

**The long prompt** arrives while streams decode, and is held against what the service's settings allow it. While
anything decodes, a step computes at most `max_prefill_tokens_per_step` prompt tokens. So a decoding stream may wait,
besides its usual step, for one chunk of that size and no more. What such a chunk costs is measured on the idle service,
where it costs most: as the last chunk of the prompt, all that precedes it read from the prefix cache.

    allowed p99  =  p99 without the long prompt  +  TTFT of a prompt with all but its last chunk cached

All but one of a hundred waits are to keep to it, so of the chunks that were measured the slowest counts. The streams
bring token ids alone: text that waits for the rest of a character would look like a stream that waits for its step.

**A cached prefix** saves time to the first token: prompts whose beginning the service holds, against prompts that it
has never seen. They go one at a time, so that nothing but their prefill is in the way.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from pagewire.client.bench import load
from pagewire.client.bench.runs import RunSettings, endless, warm_up
from pagewire.client.bench.session import Session, Trace
from pagewire.client.bench.summary import Distribution, Reading, Summary, distribution, read, summarize
from pagewire.client.bench.workload import Job, Span, random_ids
from pagewire.client.errors import InvalidRequest, PagewireError, ServerError

_POLL_S = 0.02
_START_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LongPromptCase:
    """What arrives, and beside what."""

    long_len: int
    """Tokens of the long prompt."""
    streams: int
    """That decode meanwhile."""
    input_len: int
    output_len: Span
    quiet_s: float
    """How long the streams are watched before the prompt arrives."""
    prefill_share: int
    """The service's max_prefill_tokens_per_step."""
    trials: int


@dataclass(frozen=True, slots=True)
class LongPrompt:
    """The decoding streams without and with it."""

    case: LongPromptCase
    without: Summary
    waits_without_ms: list[float]
    """Of the decoding streams, between two messages with tokens."""
    waits_with_ms: list[float]
    """Those that overlap the long prompt's prefill."""
    chunk_ms: float
    """What the costliest chunk takes, at its slowest."""
    long_ttft_ms: Distribution

    @property
    def allowed_p99_ms(self) -> float | None:
        """What the prefill share implies."""
        return None if self.without.itl_ms.p99 is None else self.without.itl_ms.p99 + self.chunk_ms

    def as_json(self) -> dict[str, object]:
        """Beside the streams' figures without it."""
        beside = distribution(self.waits_with_ms)
        alone, allowed, seen = self.without.itl_ms.p99, self.allowed_p99_ms, beside.p99
        bound = None
        if alone is not None and allowed is not None and seen is not None:
            bound = (
                f"{alone:.1f} ms without + {self.chunk_ms:.1f} ms for a chunk of {self.case.prefill_share} tokens "
                f"= {allowed:.1f} ms allowed; {seen:.1f} ms seen"
            )
        return {
            "long_prompt_tokens": self.case.long_len,
            "max_prefill_tokens_per_step": self.case.prefill_share,
            "prefill_chunk_ms": round(self.chunk_ms, 3),
            "itl_without_ms": self.without.itl_ms.as_json(),
            "itl_with_ms": beside.as_json(),
            "itl_allowed_p99_ms": None if allowed is None else round(allowed, 3),
            "itl_p99_bound": bound,
            "within_share": None if allowed is None or seen is None else seen <= allowed,
            "long_prompt_ttft_ms": self.long_ttft_ms.as_json(),
        }


async def measure_long_prompt(session: Session, settings: RunSettings, case: LongPromptCase) -> LongPrompt:
    """Raises InvalidRequest for a case that the service cannot run, and the service's own errors."""
    if case.long_len <= case.prefill_share:
        raise InvalidRequest(
            f"a long prompt of {case.long_len} tokens is no longer than the service's prefill share of "
            f"{case.prefill_share}"
        )
    rng = random.Random(f"long {settings.seed}")
    await warm_up(session, settings)
    chunk_ms = await _chunk_ms(session, settings, case, rng)
    prompts = [random_ids(rng, case.long_len, settings.max_id) for _ in range(case.trials)]
    frames = [session.encode(Job(prompt, 1), settings.temperature) for prompt in prompts]
    spans: list[tuple[float, float]] = []
    arrived: list[Reading] = []
    running = endless(session, settings, case.input_len, case.output_len, ids_alone=True)
    async with load.kept_running(session, running, case.streams) as traces:
        await _all_decode(traces, case.streams)
        begin_s = session.clock()
        await asyncio.sleep(case.quiet_s)
        quiet = (begin_s, session.clock())
        for frame in frames:
            reading = _succeeded(read(await session.stream(frame)))
            arrived.append(reading)
            spans.append((reading.due_s, reading.arrivals[0][0]))
            await asyncio.sleep(_POLL_S)  # so that the wait that the prompt's last step caused is over too
    readings = [read(trace) for trace in traces]
    return LongPrompt(
        case=case,
        without=summarize(readings, quiet),
        waits_without_ms=_waits_ms(readings, lambda start, end: quiet[0] <= start and end <= quiet[1]),
        waits_with_ms=_waits_ms(
            readings, lambda start, end: any(start < until_s and end > since_s for since_s, until_s in spans)
        ),
        chunk_ms=chunk_ms,
        long_ttft_ms=distribution(reading.ttft_ms for reading in arrived if reading.ttft_ms is not None),
    )


def _waits_ms(readings: list[Reading], counts: Callable[[float, float], bool]) -> list[float]:
    return [(end - start) * 1000 for reading in readings for start, end in reading.gaps() if counts(start, end)]


async def _chunk_ms(session: Session, settings: RunSettings, case: LongPromptCase, rng: random.Random) -> float:
    """The slowest of the trials, alone on the service."""
    times: list[float] = []
    for _ in range(case.trials):
        prompt = random_ids(rng, case.long_len, settings.max_id)
        for length in (case.long_len - case.prefill_share, case.long_len):
            job = Job(prompt[:length], 1)
            reading = _succeeded(read(await session.stream(session.encode(job, settings.temperature))))
        if reading.cached_tokens == 0:
            raise InvalidRequest("what a chunk costs is measured with the prefix cache, which the service has not on")
        assert reading.ttft_ms is not None
        # Only full blocks are cached, so a few tokens more than a chunk were computed.
        times.append(reading.ttft_ms * case.prefill_share / (case.long_len - reading.cached_tokens))
    return max(times)


def _succeeded(reading: Reading) -> Reading:
    if reading.error or not reading.arrivals:
        raise ServerError(f"a prompt was not answered: {reading.error or 'no token came'}")
    return reading


async def _all_decode(traces: list[Trace], streams: int) -> None:
    """Wait until every stream has brought tokens."""
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            while sum(len(trace.frames) > 1 for trace in traces) < streams:
                if errors := [trace.error for trace in traces if trace.error]:
                    raise ServerError(f"a stream failed: {errors[0]}")
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise PagewireError(f"not all {streams} streams had a token within {_START_TIMEOUT_S:g} s") from None


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """Both sides, and how they compare."""

    uncached: list[Reading]
    cached: list[Reading]

    @property
    def whole(self) -> Summary:
        """Of all prompts."""
        return summarize(self.uncached + self.cached)

    def ttfts_ms(self, *, cached: bool) -> list[float]:
        """Of one side."""
        readings = self.cached if cached else self.uncached
        return [reading.ttft_ms for reading in readings if reading.ttft_ms is not None]

    def as_json(self) -> dict[str, object]:
        """Medians, and what the service says that it had cached."""
        without, beside = distribution(self.ttfts_ms(cached=False)), distribution(self.ttfts_ms(cached=True))
        ratio = beside.p50 / without.p50 if beside.p50 is not None and without.p50 else None
        return {
            "ttft_uncached_ms": without.as_json(),
            "ttft_cached_ms": beside.as_json(),
            "ttft_ratio": None if ratio is None else round(ratio, 4),
            "cached_tokens_of_a_prompt": max((reading.cached_tokens for reading in self.cached), default=0),
        }


async def measure_cached_prefix(
    session: Session, settings: RunSettings, input_len: int, prefix_len: int, trials: int
) -> CachedPrefix:
    """`trials` pairs: a fresh prompt of `input_len` tokens, then one that begins with the same `prefix_len`.

    One pair more goes first and does not count: a device's first prompt of a length can cost more than the next.
    """
    if not 0 < prefix_len < input_len:
        raise InvalidRequest(f"a cached prefix of {prefix_len} must be shorter than the prompt of {input_len} tokens")
    rng = random.Random(settings.seed)
    await warm_up(session, settings)
    fresh: list[Reading] = []
    hits: list[Reading] = []
    for _ in range(trials + 1):
        prefix = random_ids(rng, prefix_len, settings.max_id)
        for readings in (fresh, hits):
            prompt = prefix + random_ids(rng, input_len - prefix_len, settings.max_id)
            readings.append(read(await session.stream(session.encode(Job(prompt, 1), settings.temperature))))
    return CachedPrefix(fresh[1:], hits[1:])
