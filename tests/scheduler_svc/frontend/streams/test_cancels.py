"""Calls that are cancelled at random phases leave a frontend as it was: no sequence, call, task or descriptor more."""

import asyncio
import os
import random
from collections.abc import Callable
from typing import Any

import grpc
import psutil
from support.frontend_world import FrontendUnderTest, ids_request, running_frontend, unary, until
from support.scripted_engine import LIMIT_S

from pagewire.v1 import generation_pb2 as pb
from pagewire.wire.model import ModelSpec
from pagewire.wire.requests import FinishKind

NUM_CANCELS = int(os.environ.get("PAGEWIRE_TEST_CANCELS", "300"))
AT_ONCE = 20
BUFFER_TOKENS = 8
"""More tokens unread pause a stream."""


async def submitted(world: FrontendUnderTest, request_id: str) -> int:
    """The handle of a request's sequence, once the engine has it."""
    found: list[int] = []

    def is_there() -> bool:
        found.extend(handle for handle, submit in world.engine.submits.items() if submit.request_id == request_id)
        return bool(found)

    await until(is_there)
    return found[0]


async def at_once(_world: FrontendUnderTest, _call: Any, _request_id: str) -> None:
    """Before anything of it is sent."""


async def waiting(world: FrontendUnderTest, _call: Any, request_id: str) -> None:
    """In the engine's queue."""
    await submitted(world, request_id)


async def started(world: FrontendUnderTest, call: Any, request_id: str) -> None:
    """Before its first token."""
    await world.engine.start(await submitted(world, request_id))
    await call.read()


async def reading(world: FrontendUnderTest, call: Any, request_id: str) -> None:
    """Between two tokens."""
    handle = await submitted(world, request_id)
    await world.engine.start(handle)
    await world.engine.step([(handle, 40)])
    for _ in range(2):
        await call.read()


async def behind(world: FrontendUnderTest, _call: Any, request_id: str) -> None:
    """Its sequence is to be paused, and to go on."""
    handle = await submitted(world, request_id)
    await world.engine.start(handle)
    await world.engine.step([(handle, 40)] * 3 * BUFFER_TOKENS)


async def ending(world: FrontendUnderTest, _call: Any, request_id: str) -> None:
    """When its end is on its way."""
    handle = await submitted(world, request_id)
    await world.engine.start(handle)
    await world.engine.step([(handle, 40)], [(handle, FinishKind.LENGTH)])


PHASES: list[Callable[[FrontendUnderTest, Any, str], Any]] = [at_once, waiting, started, reading, behind, ending]


def test_cancels_at_random_phases_leave_nothing(spec: ModelSpec) -> None:
    async def cancel_some(world: FrontendUnderTest, count: int, name: str) -> None:
        draw = random.Random(name)
        for index in range(count):
            request_id = f"{name}-{index}"
            request = ids_request(request_id=request_id, stopping=pb.Stopping(max_tokens=100))
            phase = draw.choice(PHASES)
            if phase in (at_once, waiting) and draw.random() < 0.3:
                call = world.inference.Generate(unary(request))
            else:
                call = world.inference.StreamGenerate(request)
            async with asyncio.timeout(LIMIT_S):
                await phase(world, call, request_id)
                call.cancel()
                assert await call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.OK)
            world.engine.submits = {
                handle: submit for handle, submit in world.engine.submits.items() if submit.request_id != request_id
            }

    async def test() -> None:
        async with running_frontend(spec, stream_buffer_tokens=BUFFER_TOKENS, engine_timeout_s=3600.0) as world:
            await cancel_some(world, 20, "warm")
            process = psutil.Process()

            async def idle() -> None:
                assert await world.frontend._calls.wait_idle(LIMIT_S)
                await until(lambda: not len(world.engine_client.sequences))

            await idle()
            before = len(asyncio.all_tasks()), process.num_fds()
            await asyncio.gather(
                *[cancel_some(world, NUM_CANCELS // AT_ONCE, f"client-{index}") for index in range(AT_ONCE)]
            )
            await idle()
            await until(lambda: (len(asyncio.all_tasks()), process.num_fds()) <= before)

    asyncio.run(test())
