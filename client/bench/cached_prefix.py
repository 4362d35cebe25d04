"""What a cached prefix saves: the time to the first token of prompts whose beginning the service holds, against
prompts that it has never seen. Prompts go one at a time, so that nothing but their prefill is in the way."""

from __future__ import annotations

import random
from dataclasses import dataclass

from pagewire.client.bench.distribution import distribution
from pagewire.client.bench.runs import RunSettings, warm_up
from pagewire.client.bench.session import Session
from pagewire.client.bench.summary import Reading, Summary, read, summarize
from pagewire.client.bench.workload import Job, random_ids
from pagewire.client.errors import InvalidRequest


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


async def measure(
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
