"""Runs: the loads that `bench throughput`, `bench serve` and `bench control-plane` put on a service, and summaries.

Every run warms the service up with prompts that it does not measure, and empties the prefix cache where AdminService
is known, so that a run repeated on the same service finds nothing of the one before.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace

from pagewire.client.bench import load
from pagewire.client.bench.session import Session, Trace, idle_share
from pagewire.client.bench.summary import Objective, Reading, Summary, read, summarize
from pagewire.client.bench.workload import Job, Span, random_ids
from pagewire.client.errors import ServerError

_WARM_UP_INPUT = 32
_WARM_UP_OUTPUT = 16
_DEFAULT_LOAD_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run's figures and what they were made from."""

    label: str
    summary: Summary
    readings: list[Reading]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What all runs share."""

    temperature: float
    seed: int
    max_id: int
    """Largest token id of prompts made here."""
    warm_up: int
    """Requests before the measured ones."""
    objective: Objective | None = None


async def warm_up(session: Session, settings: RunSettings) -> None:
    """Let everything happen that happens only once. Raises what the service answers."""
    if settings.warm_up:
        rng = random.Random(f"warm-up {settings.seed}")
        jobs = [Job(random_ids(rng, _WARM_UP_INPUT, settings.max_id), _WARM_UP_OUTPUT) for _ in range(settings.warm_up)]
        await load.all_at_once(session, [session.encode(job, settings.temperature) for job in jobs])
    await session.flush_cache()


async def throughput(session: Session, jobs: Sequence[Job], settings: RunSettings) -> Outcome:
    """All jobs at once."""
    return await _finite(session, jobs, settings, "all at once", lambda frames: load.all_at_once(session, frames))


async def at_rate(session: Session, jobs: Sequence[Job], settings: RunSettings, rate_per_s: float) -> Outcome:
    """Poisson arrivals."""
    label = f"{rate_per_s:g} requests/s"
    return await _finite(
        session, jobs, settings, label, lambda frames: load.open_loop(session, frames, rate_per_s, settings.seed)
    )


async def at_concurrency(session: Session, jobs: Sequence[Job], settings: RunSettings, concurrency: int) -> Outcome:
    """So many clients, each with one request at a time."""
    label = f"{concurrency} clients"
    return await _finite(session, jobs, settings, label, lambda frames: load.closed_loop(session, frames, concurrency))


async def _finite(
    session: Session,
    jobs: Sequence[Job],
    settings: RunSettings,
    label: str,
    run: Callable[[list[bytes]], Coroutine[object, object, list[Trace]]],
) -> Outcome:
    frames = [session.encode(job, settings.temperature) for job in jobs]
    await warm_up(session, settings)
    await _settle(session)
    before = await session.worker_time()
    readings = [read(trace) for trace in await run(frames)]
    await _settle(session)
    share = idle_share(before, await session.worker_time())
    return Outcome(label, summarize(readings, worker_idle_share=share, objective=settings.objective), readings)


async def _settle(session: Session) -> None:
    """Let the engine report what has ended: AdminService says what its last report said."""
    info = await session.server_info()
    if info is not None:
        await asyncio.sleep(float(info.settings.get("load_interval_s", _DEFAULT_LOAD_INTERVAL_S)) * 1.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """So many streams without a pause, each followed by another; what comes in `duration_s` after `ramp_s` counts."""

    streams: int
    input_len: int
    output_len: Span
    ramp_s: float
    duration_s: float


async def steady(session: Session, settings: RunSettings, case: Steady) -> Outcome:
    """The streams alone."""
    return await _steady(session, settings, case, lambda: asyncio.sleep(case.duration_s))


async def steady_with_arrivals(
    session: Session, settings: RunSettings, case: Steady, longest_pause_s: float
) -> tuple[Outcome, list[float]]:
    """The streams, and beside them requests that come one after the other; the times to the first token of these, in
    ms. The pauses between them are random, so that they do not keep in time with the service's steps."""
    arrivals = endless(session, replace(settings, seed=settings.seed + 1), case.input_len, Span(1, 1))
    ttfts_ms: list[float] = []

    async def arrive() -> None:
        draw = random.Random(f"pauses {settings.seed}").random
        end_s = session.clock() + case.duration_s
        while session.clock() < end_s:
            await asyncio.sleep(draw() * longest_pause_s)
            ttfts_ms.append(await _first_token_ms(session, next(arrivals)))

    return await _steady(session, settings, case, arrive), ttfts_ms


async def _steady(
    session: Session, settings: RunSettings, case: Steady, meanwhile: Callable[[], Coroutine[object, object, None]]
) -> Outcome:
    await warm_up(session, settings)
    frames = endless(session, settings, case.input_len, case.output_len)
    async with load.kept_running(session, frames, case.streams) as traces:
        await asyncio.sleep(case.ramp_s)
        before, begin_s = await session.worker_time(), session.clock()
        await meanwhile()
        end_s, after = session.clock(), await session.worker_time()
    readings = [read(trace) for trace in traces]
    summary = summarize(readings, (begin_s, end_s), worker_idle_share=idle_share(before, after))
    return Outcome(f"{case.streams} stream{'s' if case.streams > 1 else ''}", summary, readings)


async def first_tokens_ms(session: Session, settings: RunSettings, input_len: int, count: int) -> list[float]:
    """The time to the first token of each of `count` requests, one after the other on an idle service."""
    frames = endless(session, settings, input_len, Span(1, 1))
    return [await _first_token_ms(session, next(frames)) for _ in range(count)]


async def _first_token_ms(session: Session, frame: bytes) -> float:
    reading = read(await session.stream(frame))
    if reading.ttft_ms is None:
        raise ServerError(f"a request was not answered: {reading.error or 'no token came'}")
    return reading.ttft_ms


_FRAMES_AHEAD = 1024


def endless(
    session: Session, settings: RunSettings, input_len: int, output_len: Span, *, ids_alone: bool = False
) -> Iterator[bytes]:
    """Requests of random prompts without end. The first ones are made before they are needed, because making them
    costs the core that is measured; later ones are those again, whose prompts the service may have cached."""
    rng = random.Random(settings.seed)
    first = [
        session.encode(
            Job(random_ids(rng, input_len, settings.max_id), rng.randint(output_len.low, output_len.high), ids_alone),
            settings.temperature,
        )
        for _ in range(_FRAMES_AHEAD)
    ]
    return itertools.cycle(first)
