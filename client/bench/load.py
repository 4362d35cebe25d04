"""Load generation: requests all at once, in an open loop, in a closed loop, or in a closed loop for a stretch of time.

An open loop's request counts from the moment when it was due, so that a service that falls behind cannot hide it by
being asked less. Every function returns what the streams brought, whether they ended well or not.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from pagewire.client.bench.session import Session, Trace


async def all_at_once(session: Session, frames: Sequence[bytes]) -> list[Trace]:
    """Send everything now."""
    with _quiet_collector():
        return list(await asyncio.gather(*[session.stream(frame) for frame in frames]))


async def open_loop(session: Session, frames: Sequence[bytes], rate_per_s: float, seed: int) -> list[Trace]:
    """Poisson arrivals: the times between requests are exponential with mean 1 / rate."""
    times = poisson_times(len(frames), rate_per_s, seed)
    with _quiet_collector():
        begin_s = session.clock()
        async with asyncio.TaskGroup() as group:
            tasks = []
            for frame, offset_s in zip(frames, times, strict=True):
                due_s = begin_s + offset_s
                await asyncio.sleep(max(0.0, due_s - session.clock()))
                tasks.append(group.create_task(session.stream(frame, due_s)))
        return [task.result() for task in tasks]


def poisson_times(count: int, rate_per_s: float, seed: int) -> list[float]:
    """Seconds after the start, the first at 0."""
    draw = random.Random(seed).expovariate
    times = [0.0]
    while len(times) < count:
        times.append(times[-1] + draw(rate_per_s))
    return times[:count]


async def closed_loop(session: Session, frames: Sequence[bytes], concurrency: int) -> list[Trace]:
    """`concurrency` clients, each sending its next request when its last has ended, until all are sent."""
    traces: list[Trace] = []
    with _quiet_collector():
        left = iter(frames)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(frames))):
                group.create_task(_client(session, left, traces, stops_when_refused=False))
    return traces


@asynccontextmanager
async def kept_running(session: Session, frames: Iterator[bytes], concurrency: int) -> AsyncIterator[list[Trace]]:
    """A closed loop for as long as the block runs; then its streams are cut. Yields the traces, which grow."""
    traces: list[Trace] = []
    with _quiet_collector():
        tasks = [
            asyncio.create_task(_client(session, frames, traces, stops_when_refused=True)) for _ in range(concurrency)
        ]
        try:
            yield traces
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _client(session: Session, frames: Iterable[bytes], traces: list[Trace], *, stops_when_refused: bool) -> None:
    """`stops_when_refused`: with requests without end, asking again at once would measure refusals."""
    for frame in frames:
        trace = Trace(session.clock())
        traces.append(trace)
        await session.stream(frame, trace=trace)
        if stops_when_refused and trace.error:
            return


@contextmanager
def _quiet_collector() -> Iterator[None]:
    """The collector would walk every kept message, again and again, on the service's cores."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
