"""The link to KV events, against the engine's own publisher: in order, without a gap, or not at all."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from pagewire.scheduler_svc.engine.kv_event_publisher import KvEventPublisher
from pagewire.scheduler_svc.frontend.errors import KvEventsLost, OutOfRange
from pagewire.scheduler_svc.frontend.streams import kv_event_link
from pagewire.scheduler_svc.frontend.streams.kv_event_link import KvEventLink
from pagewire.scheduler_svc.launch import KvEventsLaunch
from pagewire.wire.kv_events import BlockStored, KvEvent, KvEventBatch, stored

Run = Callable[[Coroutine[Any, Any, None]], None]
LIMIT_S = 20.0


@pytest.fixture
def launch() -> Iterator[KvEventsLaunch]:
    with tempfile.TemporaryDirectory(prefix="pw") as folder:
        yield KvEventsLaunch(addresses=(f"ipc://{folder}/p",), replay_addresses=(f"ipc://{folder}/r",), topic="kv@a@b")


def event(number: int, size: int = 2) -> list[KvEvent]:
    return [stored([number], None, [number] * size, size, None)]


async def take(batches: AsyncIterator[tuple[int, KvEventBatch]], count: int) -> list[int]:
    """Their numbers; what is in them belongs to the number."""
    numbers = []
    async with asyncio.timeout(LIMIT_S):
        while len(numbers) < count:
            number, batch = await anext(batches)
            (told,) = batch.events
            assert isinstance(told, BlockStored)
            assert told.block_hashes == [number]
            numbers.append(number)
    return numbers


def test_all_that_is_kept_and_then_what_comes(launch: KvEventsLaunch, run: Run) -> None:
    async def test() -> None:
        with KvEventPublisher(launch) as publisher:
            for number in range(10):
                publisher.publish(event(number))
            with KvEventLink(launch) as link:
                batches = link.batches(0)
                assert await take(batches, 10) == list(range(10))
                for number in range(10, 200):
                    publisher.publish(event(number))
                assert await take(batches, 190) == list(range(10, 200))
            with KvEventLink(launch) as link:
                assert await take(link.batches(150), 50) == list(range(150, 200))
            with KvEventLink(launch) as link, pytest.raises(OutOfRange, match="0 to 199 are kept"):
                await take(link.batches(200), 1)

    run(test())


def test_a_past_that_is_not_whole_is_not_told(launch: KvEventsLaunch, run: Run) -> None:
    async def test() -> None:
        with KvEventPublisher(launch, max_kept=5) as publisher:
            for number in range(10):
                publisher.publish(event(number))
            with KvEventLink(launch) as link:
                batches = link.batches(0)
                coming = asyncio.ensure_future(take(batches, 1))
                number = 10
                while not coming.done():  # it is not known when it follows
                    publisher.publish(event(number))
                    number += 1
                    await asyncio.sleep(0.01)
                assert (await coming)[0] >= 10
            with KvEventLink(launch) as link, pytest.raises(OutOfRange, match="is 3, which is not kept"):
                await take(link.batches(3), 1)

    run(test())


def test_what_a_slow_caller_misses_is_replayed(
    launch: KvEventsLaunch, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_event_link, "_SILENCE_MS", 50)

    async def test() -> None:
        with KvEventPublisher(launch) as publisher, KvEventLink(launch) as link:
            publisher.publish(event(0))
            batches = link.batches(0)
            assert await take(batches, 1) == [0]
            # While nobody reads, far more than fits between the two.
            for number in range(1, 6000):
                publisher.publish(event(number, 512))
                if number % 100 == 0:
                    await asyncio.sleep(0)
            assert await take(batches, 5999) == list(range(1, 6000))

    run(test())


def test_a_gap_that_cannot_be_filled_ends_it(launch: KvEventsLaunch, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_event_link, "_SILENCE_MS", 50)

    async def test() -> None:
        with KvEventPublisher(launch, max_kept=10) as publisher, KvEventLink(launch) as link:
            publisher.publish(event(0))
            batches = link.batches(0)
            assert await take(batches, 1) == [0]
            for number in range(1, 20_000):
                publisher.publish(event(number, 512))
                if number % 100 == 0:
                    await asyncio.sleep(0.001)
            with pytest.raises(KvEventsLost):
                await take(batches, 19_999)

    run(test())


def test_another_engine_ends_it_whether_it_speaks_or_not(
    launch: KvEventsLaunch, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_event_link, "_SILENCE_MS", 100)

    async def test() -> None:
        for speaks in (True, False):
            with KvEventLink(launch) as link:
                with KvEventPublisher(launch) as publisher:
                    publisher.publish(event(0))
                    publisher.publish(event(1))
                    batches = link.batches(0)
                    assert await take(batches, 2) == [0, 1]
                with KvEventPublisher(launch) as publisher:
                    if speaks:
                        publisher.publish(event(0))
                    with pytest.raises(KvEventsLost, match="started again"):
                        await take(batches, 1)

    run(test())
