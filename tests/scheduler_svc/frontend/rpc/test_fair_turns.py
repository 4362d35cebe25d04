"""Places and who has them, on a bare event loop."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pagewire.scheduler_svc.frontend.fairness import FairTurns

Run = Callable[[Coroutine[Any, Any, None]], None]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_client_with_many_waits_as_long_as_one_with_few(run: Run) -> None:
    async def test() -> None:
        turns = FairTurns(1)
        order: list[str] = []

        async def work(client: str) -> None:
            await turns.take(client)
            order.append(client)
            await asyncio.sleep(0)
            turns.free()

        await turns.take("first")
        tasks = [asyncio.create_task(work(client)) for client in "aaaabbc"]
        await settle()
        assert not order
        turns.free()
        await asyncio.gather(*tasks)
        assert "".join(order) == "abcabaa"

    run(test())


@given(st.lists(st.tuples(st.sampled_from(["take", "cancel", "free"]), st.integers(0, 7)), max_size=60))
def test_places_are_neither_lost_nor_made_whatever_is_cancelled(steps: list[tuple[str, int]]) -> None:
    async def test() -> None:
        turns = FairTurns(2)
        tasks: list[asyncio.Task[None]] = []
        held = 0

        async def take(client: str) -> None:
            nonlocal held
            await turns.take(client)
            held += 1

        for step, which in steps:
            if step == "take":
                tasks.append(asyncio.create_task(take(str(which % 3))))
            elif step == "cancel" and tasks:
                tasks[which % len(tasks)].cancel()
            elif held:
                held -= 1
                turns.free()  # before those that were cancelled have run
            if which % 2:
                await settle()
                assert held <= 2
        await settle()
        waiting = sum(not task.done() for task in tasks)
        assert held == 2 or not waiting
        while waiting or held:
            held -= 1
            turns.free()
            await settle()
            waiting = sum(not task.done() for task in tasks)
        await asyncio.wait_for(turns.take("x"), 1)
        await asyncio.wait_for(turns.take("y"), 1)

    asyncio.run(test())
