"""What a frontend counts of calls, with an engine that says how each ends."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.frontend_world import FrontendUnderTest, failure, ids_request, running_frontend, until
from support.scripted_engine import LIMIT_S
from support.tiny_tokenizer import make_spec, make_tokenizer

from pagewire.scheduler_svc.frontend import errors
from pagewire.scheduler_svc.frontend.streams.measures import FrontendMeasures, reason_of
from pagewire.v1 import generation_pb2 as pb
from pagewire.wire.columns import pack
from pagewire.wire.control import EngineRestarted
from pagewire.wire.measures import ENDS, REFUSALS, FrontendCounts, FrontendMeasured, Histogram
from pagewire.wire.requests import (
    FinishKind,
    Register,
    Rejected,
    RejectKind,
    SeqFinished,
    SeqStarted,
    Submit,
    TokenBatch,
)

Run = Callable[[Coroutine[Any, Any, None]], None]


async def counts(world: FrontendUnderTest, wanted: Callable[[FrontendCounts], bool]) -> FrontendCounts:
    """What is counted, once it is as wanted."""
    measures = world.frontend._measures
    assert measures is not None
    await until(lambda: wanted(measures.report().counts))
    return measures.report().counts


def measured(tmp_path: Path) -> Any:
    return running_frontend(make_spec(tmp_path), measures=True)


def num(histogram: Histogram) -> int:
    return sum(histogram.counts)


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        (FinishKind.EOS, "eos"),
        (FinishKind.LENGTH, "length"),
        (FinishKind.STOP_TOKEN, "stop_token"),
        (FinishKind.ABORTED, "aborted"),
    ],
)
def test_an_output_s_end_and_every_time_of_its_call(kind: FinishKind, end: str, run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        async with measured(tmp_path) as world:
            call = world.inference.StreamGenerate(ids_request(3, 4, 5))
            submit = await world.engine.act(Submit)
            world.clock.advance(2.0)
            started = [SeqStarted(submit.handle, 2, 1.5)]
            await world.engine.send(TokenBatch(started, pack([submit.handle]), pack([7]), []))
            assert (await call.read()).HasField("started")
            assert (await call.read()).HasField("delta")
            world.clock.advance(3.0)
            await world.engine.send(
                TokenBatch([], pack([submit.handle]), pack([8]), [SeqFinished(submit.handle, kind)])
            )
            while await call.read() is not grpc.aio.EOF:
                pass
            found = await counts(world, lambda counts: counts.requests["completed"] == 1)
            assert {name: count for name, count in found.outputs.items() if count} == {end: 1}
            assert 2.0 <= found.time_to_first_token.total < 2.0 + LIMIT_S
            assert 3.0 <= found.inter_token.total < 3.0 + LIMIT_S
            assert 5.0 <= found.request.total < 5.0 + LIMIT_S
            assert found.queue.total == 1.5
            assert 0.5 <= found.prefill.total < 0.5 + LIMIT_S
            assert 3.0 <= found.decode.total < 3.0 + LIMIT_S
            assert [num(each) for each in (found.time_to_first_token, found.inter_token, found.request)] == [1, 1, 1]
            use = found.tenants[""]
            assert (use.requests, use.prompt_tokens, use.cached_tokens, use.output_tokens) == (1, 3, 2, 2)

    run(test())


def test_a_stop_string_is_an_end(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        async with measured(tmp_path) as world:
            ids = make_tokenizer().encode("ab", add_special_tokens=False).ids
            request = ids_request(3, 4, stopping=pb.Stopping(stop_strings=["ab"]))
            call = world.inference.StreamGenerate(request)
            submit = await world.engine.act(Submit)
            started = [SeqStarted(submit.handle, 0, 0.0)]
            await world.engine.send(TokenBatch(started, pack([submit.handle] * len(ids)), pack(ids), []))
            while await call.read() is not grpc.aio.EOF:
                pass
            found = await counts(world, lambda counts: counts.requests["completed"] == 1)
            assert found.outputs["stop_string"] == 1

    run(test())


def test_the_first_token_of_several_outputs_counts_once_where_text_is_held_back(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        async with measured(tmp_path) as world:
            held = make_tokenizer().encode("a", add_special_tokens=False).ids[0]
            request = ids_request(3, 4, n=3, stopping=pb.Stopping(stop_strings=["ab"]))
            call = world.inference.StreamGenerate(request)
            handles = [(await world.engine.act(Submit)).handle for _ in range(3)]
            started = [SeqStarted(handle, 0, 0.0) for handle in handles]
            await world.engine.send(TokenBatch(started, pack(handles[:2]), pack([held] * 2), []))
            await world.engine.send(TokenBatch([], pack(handles[2:]), pack([held]), []))
            await world.engine.send(TokenBatch([], pack(handles), pack([held] * 3), []))
            found = await counts(world, lambda counts: num(counts.inter_token) == 3)
            assert num(found.time_to_first_token) == 1
            call.cancel()

    run(test())


def test_what_never_ran_has_no_phases_and_used_nothing(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        async with measured(tmp_path) as world:
            call = world.inference.StreamGenerate(ids_request(3, 4))
            handle = (await world.engine.act(Submit)).handle
            aborted = [SeqFinished(handle, FinishKind.ABORTED)]
            await world.engine.send(TokenBatch([], b"", b"", aborted))
            while await call.read() is not grpc.aio.EOF:
                pass
            found = await counts(world, lambda counts: counts.requests["completed"] == 1)
            assert [num(each) for each in (found.queue, found.prefill, found.decode, found.request)] == [0, 0, 0, 1]
            assert found.tenants[""].prompt_tokens == 0

    run(test())


def test_what_started_and_had_no_token_has_queued_alone(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        async with measured(tmp_path) as world:
            call = world.inference.StreamGenerate(ids_request(3, 4))
            handle = (await world.engine.act(Submit)).handle
            await world.engine.send(TokenBatch([SeqStarted(handle, 0, 0.5)], b"", b"", []))
            assert (await call.read()).HasField("started")
            call.cancel()
            found = await counts(world, lambda counts: counts.requests["cancelled"] == 1)
            assert [num(each) for each in (found.queue, found.prefill, found.decode)] == [1, 0, 0]
            assert found.tenants[""].prompt_tokens == 2

    run(test())


def test_what_queues_at_a_second_engine_has_queued_at_the_first_too(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        async with measured(tmp_path) as world:
            call = world.inference.StreamGenerate(ids_request(3, 4))
            await world.engine.act(Submit)
            world.clock.advance(5.0)
            world.engine.restart()
            world.frontend.handle(EngineRestarted(1))
            await world.engine.act(Register)
            await world.engine.info()
            handle = (await world.engine.act(Submit)).handle
            ended = [SeqFinished(handle, FinishKind.LENGTH)]
            await world.engine.send(TokenBatch([SeqStarted(handle, 0, 2.0)], pack([handle]), pack([7]), ended))
            while await call.read() is not grpc.aio.EOF:
                pass
            found = await counts(world, lambda counts: counts.requests["completed"] == 1)
            assert 7.0 <= found.queue.total < 7.0 + LIMIT_S

    run(test())


def test_a_client_that_does_not_read_has_cancelled() -> None:
    measures = FrontendMeasures(lambda: 0.0)
    error = errors.ResourceExhausted("reads too slowly", None, errors.Exhausted.READER)
    with pytest.raises(errors.ResourceExhausted), measures.call(""):
        raise error
    assert {name: count for name, count in measures.report().counts.requests.items() if count} == {"cancelled": 1}


def test_streams_of_one_step_are_one_time_apart(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        async with measured(tmp_path) as world:
            calls = [world.inference.StreamGenerate(ids_request(3, 4)) for _ in range(4)]
            handles = [(await world.engine.act(Submit)).handle for _ in calls]
            started = [SeqStarted(handle, 0, 0.0) for handle in handles]
            await world.engine.send(TokenBatch(started, pack(handles), pack([7] * 4), []))
            await counts(world, lambda counts: num(counts.time_to_first_token) == 4)
            for number in (1, 2, 3):
                world.clock.advance(1.0)
                await world.engine.send(TokenBatch([], pack(handles), pack([8] * 4), []))
                found = await counts(world, lambda counts, number=number: num(counts.inter_token) == 4 * number)
            assert 12.0 <= found.inter_token.total < 12.0 + 4 * LIMIT_S
            for call in calls:
                call.cancel()
            found = await counts(world, lambda counts: counts.requests["cancelled"] == 4)
            assert found.requests["completed"] == 0

    run(test())


def test_what_the_engine_refuses_and_what_it_fails(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        async with measured(tmp_path) as world:
            call = world.inference.StreamGenerate(ids_request(3, 4))
            submit = await world.engine.act(Submit)
            await world.engine.send(Rejected(submit.handle, RejectKind.QUEUE_FULL, "", "full", 1.0))
            assert (await failure(call)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            call = world.inference.StreamGenerate(ids_request(3, 4))
            submit = await world.engine.act(Submit)
            started = [SeqStarted(submit.handle, 0, 0.0)]
            failed = [SeqFinished(submit.handle, FinishKind.FAILED, 0, "no numbers")]
            await world.engine.send(TokenBatch(started, pack([submit.handle]), pack([7]), failed))
            assert (await failure(call)).code() is grpc.StatusCode.INTERNAL
            found = await counts(world, lambda counts: counts.requests["failed"] == 1)
            assert found.requests["refused"] == 1
            told = {name: count for name, count in found.refusals.items() if count}
            assert told == {"queue_full": 1, "model_failed": 1}

    run(test())


def test_the_supervisor_is_told(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        async with measured(tmp_path) as world:
            call = world.inference.StreamGenerate(ids_request(3, 4))
            await world.engine.act(Submit)
            async with asyncio.timeout(LIMIT_S):
                while not isinstance(news := await world.news.get(), FrontendMeasured) or not news.open_requests:
                    pass
            call.cancel()

    run(test())


def test_a_frontend_that_ends_by_an_error_tells_what_it_ended(run: Run, tmp_path: Path) -> None:
    worlds: list[FrontendUnderTest] = []

    async def until_a_bug() -> None:
        async with measured(tmp_path) as world:
            worlds.append(world)
            call = world.inference.StreamGenerate(ids_request(3, 4))
            await world.engine.act(Submit)
            async with asyncio.timeout(LIMIT_S):
                while not isinstance(news := await world.news.get(), FrontendMeasured) or not news.open_requests:
                    pass
            world.frontend._broken(errors.InternalError("a bug"))
            await failure(call)

    async def test() -> None:
        with pytest.raises(errors.InternalError):
            await until_a_bug()
        (world,) = worlds
        told = [world.news.get_nowait() for _ in range(world.news.qsize())]
        assert [news.open_requests for news in told if isinstance(news, FrontendMeasured)][-1:] == [0]

    run(test())


def test_every_error_has_a_reason_of_its_own() -> None:
    kinds: list[Any] = [errors.InternalError("x"), errors.InvalidArgument("f", "x")]
    kinds += [errors.Unavailable(reason, "x") for reason in errors.UnavailableReason]
    kinds += [errors.ResourceExhausted("x", None, kind) for kind in errors.Exhausted]
    plain = set(errors.RequestError.__subclasses__()) - {type(kind) for kind in kinds}
    kinds += [kind("x") for kind in plain]
    assert sorted(map(reason_of, kinds)) == sorted(REFUSALS)


def test_every_end_of_the_contract_is_counted() -> None:
    reasons = {name.removeprefix("FINISH_REASON_").lower() for name in pb.FinishReason.keys()}  # noqa: SIM118
    assert set(ENDS) == reasons - {"unspecified"}
