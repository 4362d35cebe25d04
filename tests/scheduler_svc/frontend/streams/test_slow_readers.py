"""Readers that fall behind: their sequences are paused, go on, or end, and nobody else's are touched."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.frontend_world import FrontendUnderTest, failure, ids_request, running_frontend, until
from support.scripted_engine import LIMIT_S
from support.tcp_proxy import TcpProxy

from pagewire.scheduler_svc.frontend.streams.backpressure import Backpressure, ReaderLimits
from pagewire.v1.inference_pb2_grpc import InferenceServiceStub
from pagewire.wire.columns import unpack
from pagewire.wire.control import EngineRestarted
from pagewire.wire.model import ModelSpec
from pagewire.wire.requests import Abort, FinishKind, FromFrontend, Pause, Register, Resume, Submit

Run = Callable[[Coroutine[Any, Any, None]], None]
LIMIT_TOKENS = 1000
LONG = 2**20


@contextlib.asynccontextmanager
async def behind(
    spec: ModelSpec, n: int = 1, by_way_of: Callable[[str], str] = str
) -> AsyncIterator[tuple[FrontendUnderTest, Any, list[int], int]]:
    """A frontend, a call of `n` outputs that nobody reads, their handles, and how many tokens came of each until they
    were paused. `by_way_of` says under which address the frontend's is reached."""
    async with running_frontend(
        spec,
        stream_buffer_tokens=LIMIT_TOKENS,
        max_model_len=LONG,
        num_blocks=2**16,
        slow_reader_timeout_s=60.0,
        engine_timeout_s=1e6,  # the engine is silent while the clock is set forward
    ) as world:
        world.engine.max_model_len = LONG
        await world.engine.info()
        # A window that does not grow, or megabytes would have to be sent before anything waits.
        window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)]
        async with grpc.aio.insecure_channel(by_way_of(world.ready.address), options=window) as channel:
            call = InferenceServiceStub(channel).StreamGenerate(ids_request(1, n=n))
            handles = [(await world.engine.act(Submit)).handle for _ in range(n)]
            await world.engine.start(handles[0])
            sent = 0
            while not world.engine.paused:
                # Many short steps, with pauses, so that the flow-control window fills and not only the queue.
                await world.engine.step([(handle, 40) for handle in handles for _ in range(100)])
                sent += 100
                await asyncio.sleep(0.001)
                assert sent < 1_000_000
            assert unpack((await world.engine.act(Pause)).handles).tolist() == handles
            yield world, call, handles, sent


async def read_all(call: Any) -> dict[int, int]:
    """How many tokens came, by output."""
    found: dict[int, int] = {}
    async with asyncio.timeout(LIMIT_S):
        while (message := await call.read()) is not grpc.aio.EOF:
            if message.HasField("delta"):
                output = message.delta.output
                found[output] = found.get(output, 0) + len(message.delta.tokens)
    return found


async def acts(world: FrontendUnderTest, kinds: tuple[type[FromFrontend], ...]) -> list[FromFrontend]:
    return [await world.engine.act(kind) for kind in kinds]


def test_all_outputs_of_a_reader_that_is_behind_rest_until_it_has_caught_up(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with behind(spec, n=2) as (world, call, handles, sent):
            # What was under way still comes; it is kept, and nothing is said twice.
            await world.engine.step([(handle, 41) for handle in handles for _ in range(50)])
            collected = asyncio.create_task(read_all(call))
            assert unpack((await world.engine.act(Resume)).handles).tolist() == handles
            await world.engine.step([], [(handles[0], FinishKind.LENGTH)])
            await world.engine.step([(handles[1], 42)], [(handles[1], FinishKind.LENGTH)])
            assert await collected == {0: sent + 50, 1: sent + 51}
            assert not world.engine.aborted
            await until(lambda: len(world.engine_client.sequences) == 0)

    run(test())


def test_a_reader_that_stays_away_loses_its_own_stream_alone(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with behind(spec) as (world, call, handles, _):
            quick = world.inference.StreamGenerate(ids_request(2))
            fast = await world.engine.act(Submit)
            await world.engine.start(fast.handle)
            collected = asyncio.create_task(read_all(quick))
            world.clock.advance(59)
            await world.engine.step([(fast.handle, 40)] * 200)
            assert not world.engine.aborted
            world.clock.advance(2)
            assert unpack((await world.engine.act(Abort)).handles).tolist() == handles
            await world.engine.step([(fast.handle, 40)], [(fast.handle, FinishKind.LENGTH)])
            assert await collected == {0: 201}
            error = await failure(call)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "it has taken nothing for 60 s (slow_reader_timeout_s)" in (error.details() or "")

    run(test())


def test_a_new_engine_lets_them_rest_too(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with behind(spec) as (world, call, handles, sent):
            world.engine.restart()
            world.frontend.handle(EngineRestarted(1))
            await acts(world, (Register,))
            await world.engine.info()
            again = await world.engine.act(Submit)
            assert (again.handle, len(unpack(again.generated))) == (handles[0], sent)
            assert unpack((await world.engine.act(Pause)).handles).tolist() == handles
            collected = asyncio.create_task(read_all(call))
            assert unpack((await world.engine.act(Resume)).handles).tolist() == handles
            await world.engine.step([(handles[0], 40)], [(handles[0], FinishKind.LENGTH)])
            assert await collected == {0: sent + 1}

    run(test())


@pytest.mark.parametrize("how", ["cancelled", "ended by an operator"])
def test_what_rests_can_end(spec: ModelSpec, run: Run, how: str) -> None:
    async def test() -> None:
        async with behind(spec) as (world, call, handles, sent):
            if how == "cancelled":
                call.cancel()
                assert unpack((await world.engine.act(Abort)).handles).tolist() == handles
            else:
                await world.engine.step([], [(handles[0], FinishKind.ABORTED)])
                assert await read_all(call) == {0: sent}
            await until(lambda: len(world.engine_client.sequences) == 0)
            await until(lambda: not world.engine_client.sequences._paused)

    run(test())


def test_a_connection_that_breaks_under_a_reader_is_no_error_of_ours(
    spec: ModelSpec, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        with contextlib.ExitStack() as proxies:
            proxy: list[TcpProxy] = []

            def by_way_of(address: str) -> str:
                proxy.append(proxies.enter_context(TcpProxy(address)))
                return proxy[0].address

            async with behind(spec, by_way_of=by_way_of) as (world, call, handles, _):
                proxy[0].cut()
                assert unpack((await world.engine.act(Abort)).handles).tolist() == handles
                assert (await failure(call)).code() is grpc.StatusCode.UNAVAILABLE
                await until(lambda: len(world.engine_client.sequences) == 0)

    run(test())
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@given(
    limit=st.integers(16, 64),
    moves=st.lists(st.tuples(st.booleans(), st.integers(1, 40), st.floats(0, 4)), max_size=60),
)
def test_a_stream_is_paused_past_its_limit_and_goes_on_below_half(
    limit: int, moves: list[tuple[bool, int, float]]
) -> None:
    pressure = Backpressure(ReaderLimits(pause_tokens=limit, timeout_s=10.0))
    waiting, now_s, taken_s, paused, looks = 0, 0.0, 0.0, False, 0
    for puts, amount, passed_s in moves:
        now_s += passed_s
        if puts:
            said = [pressure.put(now_s) for _ in range(amount)]
            waiting += amount
            if not paused and waiting > limit:
                assert any(said)
                paused, taken_s, looks = True, now_s, 0
        else:
            amount = min(amount, waiting)
            waiting -= amount
            goes_on = paused and waiting <= limit // 2
            assert pressure.took(amount, now_s) == goes_on
            paused = paused and not goes_on
            taken_s, looks = now_s, 0
        assert pressure.is_paused == paused
        is_late = paused and now_s - taken_s >= 10.0
        looks = looks + 1 if is_late else looks
        assert (pressure.overdue(now_s) is not None) == (is_late and looks > 1)


def test_nobody_is_behind_where_everything_is_collected() -> None:
    pressure = Backpressure(None)
    assert not any(pressure.put(0.0) for _ in range(100_000))
    assert not pressure.is_paused
    assert pressure.overdue(1e9) is None
