"""Watchers of the engine: what they are sent, who may be one, and that they leave nothing behind."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any

import httpx2 as httpx
import pytest
from support.http_gateway import gateway
from support.scripted_admin import OPERATOR, TENANT, ScriptedAdmin

from pagewire.client.errors import Overloaded
from pagewire.client.gateway.engine_watch import MAX_WATCHERS, EngineWatch
from pagewire.client.transport import Transport


@pytest.fixture
def admin() -> Iterator[ScriptedAdmin]:
    with ScriptedAdmin() as scripted:
        yield scripted


def steps_of(lines: bytes) -> list[int]:
    """Of the loads among server-sent events."""
    events = [each.split("\n") for each in lines.decode().split("\n\n") if each]
    return [json.loads(data.removeprefix("data: "))["steps"] for name, data in events if name == "event: load"]


async def until_step(lines: AsyncIterator[bytes], step: int) -> list[int]:
    """The loads that come, up to that one."""
    seen: list[int] = []
    while step not in seen:
        seen += steps_of(await anext(lines))
    return seen


def watching(admin: ScriptedAdmin, work: Callable[[EngineWatch], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            await work(EngineWatch(lambda key: Transport(target=admin.address, api_key=key)))

    asyncio.run(main())


def test_pages_share_streams_that_end_with_the_last_of_them(admin: ScriptedAdmin) -> None:
    async def work(watch: EngineWatch) -> None:
        async with aclosing(watch.lines(OPERATOR)) as first:
            await until_step(first, 0)
            async with aclosing(watch.lines(OPERATOR)) as second:
                assert await until_step(second, 0) == [0]  # what is known already comes at once
                admin.step()
                await until_step(first, 1)
                await until_step(second, 1)
                await asyncio.to_thread(admin.wait_until, lambda: admin.open == {"load": 1, "blocks": 1})
            admin.step()
            await until_step(first, 2)
            assert admin.open == {"load": 1, "blocks": 1}
        await asyncio.to_thread(admin.wait_until, lambda: admin.open == {"load": 0, "blocks": 0})

    watching(admin, work)


def test_one_that_reads_slowly_sees_the_newest_alone(admin: ScriptedAdmin) -> None:
    async def work(watch: EngineWatch) -> None:
        async with aclosing(watch.lines(OPERATOR)) as slow, aclosing(watch.lines(OPERATOR)) as fast:
            await until_step(slow, 0)
            for step in range(1, 20):
                admin.step()
                await until_step(fast, step)
            assert steps_of(await anext(slow)) == [19]

    watching(admin, work)


def test_no_more_than_may_watch(admin: ScriptedAdmin) -> None:
    async def work(watch: EngineWatch) -> None:
        pages = [watch.lines(OPERATOR) for _ in range(MAX_WATCHERS)]
        for page in pages:
            await until_step(page, 0)
        with pytest.raises(Overloaded, match=f"{MAX_WATCHERS} pages watch the engine already"):
            await watch.check(OPERATOR)
        assert [line async for line in watch.lines(OPERATOR)] == []
        await pages.pop().aclose()
        await watch.check(OPERATOR)
        watch.end()
        for page in pages:
            assert [line async for line in page] == []
        await asyncio.to_thread(admin.wait_until, lambda: admin.open == {"load": 0, "blocks": 0})

    watching(admin, work)


def test_who_may_watch(admin: ScriptedAdmin) -> None:
    with gateway("127.0.0.1:1", admin.address) as address:
        for key, expected in ((None, 401), ("sk-nobody", 401), (TENANT, 403)):
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            answer = httpx.get(f"{address}/engine/events", headers=headers)
            assert answer.status_code == expected
            assert answer.json()["error"]["message"]
        with httpx.stream("GET", f"{address}/engine/events", headers={"authorization": f"Bearer {OPERATOR}"}) as told:
            assert told.status_code == 200
            # Loads and blocks come in the order in which the server's streams begin.
            assert next(steps for lines in told.iter_bytes() if (steps := steps_of(lines))) == [0]
        admin.wait_until(lambda: admin.open == {"load": 0, "blocks": 0})
