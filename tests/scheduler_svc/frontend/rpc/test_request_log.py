"""The request log: a line for each call that generates, with what an operator may see of it."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from support.frontend_world import failure, ids_request, running_frontend, unary, until

from pagewire.scheduler_svc.frontend.rpc.request_records import request_of_task
from pagewire.v1 import generation_pb2, inference_pb2
from pagewire.wire.log_lines import JsonLines
from pagewire.wire.requests import Abort, EngineState, FinishKind, RejectKind, Submit

KEY = "a-key-of-enough-letters"
SECRET = "the words of a prompt"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What a frontend that starts now writes."""
    root, stream = logging.getLogger(), io.StringIO()
    handler, level = logging.StreamHandler(stream), root.level
    handler.setFormatter(JsonLines("frontend", request_of_task))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def lines(written: io.StringIO) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in written.getvalue().splitlines()]
    return [line for line in found if line["message"] == "request ended"]


def text_request(**fields: Any) -> inference_pb2.StreamGenerateRequest:
    prompt = generation_pb2.Prompt(text=SECRET)
    return inference_pb2.StreamGenerateRequest(generation=generation_pb2.Generation(prompt=prompt, **fields))


def test_a_request_has_one_line_and_no_words_of_it(spec, run, written, tmp_path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"ann:{KEY}\n")
    metadata = [("authorization", f"Bearer {KEY}")]

    async def test() -> None:
        async with running_frontend(spec, api_keys_file=str(keys)) as world:
            request = text_request(request_id="r-1", priority=3, n=2)
            stream = world.inference.StreamGenerate(request, metadata=metadata)
            first, second = await world.engine.act(Submit), await world.engine.act(Submit)
            await world.engine.start(first.handle, cached_tokens=1, queue_s=0.25)
            await world.engine.step([(first.handle, 5)], [(first.handle, FinishKind.EOS)])
            await world.engine.answer(second.handle, [5, 6], FinishKind.LENGTH)
            assert [message.WhichOneof("event") async for message in stream][-1] == "usage"
        (line,) = lines(written)
        assert line["request_id"] == "r-1"
        assert (line["tenant"], line["model"], line["priority"], line["code"]) == ("ann", spec.name, 3, "OK")
        assert line["finish_reasons"] == ["EOS", "LENGTH"]
        assert (line["cached_tokens"], line["output_tokens"]) == (1, 3)
        assert line["prompt_tokens"] > 0
        assert line["queue_s"] == 0.25
        assert line["duration_s"] >= line["time_to_first_token_s"] > 0
        assert SECRET not in written.getvalue()
        assert KEY not in written.getvalue()

    run(test())


def test_every_end_has_its_code_and_reason(spec, run, written) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            await failure(world.inference.StreamGenerate(text_request(n=10_000)))
            refused = world.inference.Generate(unary(ids_request()))
            await world.engine.reject((await world.engine.act(Submit)).handle, RejectKind.QUEUE_FULL)
            await failure(refused)
            cancelled = world.inference.StreamGenerate(ids_request(request_id="given-up"))
            await world.engine.act(Submit)
            cancelled.cancel()
            await world.engine.act(Abort)
            await until(lambda: len(lines(written)) == 3)
            late = world.inference.StreamGenerate(ids_request(), timeout=0.2)
            await world.engine.act(Submit)
            assert (await failure(late)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await world.engine.act(Abort)
            await until(lambda: len(lines(written)) == 4)
            await world.engine.info(EngineState.RECOVERING)
            await until(lambda: world.engine_client.status.state is EngineState.RECOVERING)
            await failure(world.inference.Generate(unary(ids_request())))
        ended = lines(written)
        assert [(line["code"], line.get("reason")) for line in ended] == [
            ("INVALID_ARGUMENT", "generation.n"),
            ("RESOURCE_EXHAUSTED", None),
            ("CANCELLED", None),
            ("DEADLINE_EXCEEDED", None),
            ("UNAVAILABLE", "WORKER_LOST"),
        ]
        assert ended[2]["request_id"] == "given-up"
        assert not any("finish_reasons" in line for line in ended)
        assert SECRET not in written.getvalue()

    run(test())


def test_refusals_without_end_do_not_fill_a_disk(spec, run, written) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            for _ in range(300):
                await failure(world.inference.Generate(inference_pb2.GenerateRequest()))
            answer = world.inference.Generate(unary(ids_request()))
            await world.engine.answer((await world.engine.act(Submit)).handle, [5])
            await answer
        *refused, last = lines(written)
        assert len(refused) < 300
        assert last["code"] == "OK"
        assert len(refused) + last["lines_left_out"] == 300

    run(test())


def test_a_bug_is_told_with_the_request_that_met_it(spec, run, written, monkeypatch) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:

            def broken(_stream: object) -> None:
                raise LookupError("a bug")

            monkeypatch.setattr(world.engine_client.sequences, "submit", broken)
            error = await failure(world.inference.Generate(unary(ids_request(request_id="r-7"))))
            assert error.code() is grpc.StatusCode.INTERNAL
        told = [json.loads(line) for line in written.getvalue().splitlines()]
        (failed,) = [line for line in told if line["message"] == "a call failed"]
        assert failed["request_id"] == "r-7"
        assert "LookupError" in failed["error"]
        (line,) = lines(written)
        assert (line["request_id"], line["code"]) == ("r-7", "INTERNAL")

    run(test())


def test_no_line_below_the_level(spec, run, written) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            answer = world.inference.Generate(unary(ids_request()))
            await world.engine.answer((await world.engine.act(Submit)).handle, [5])
            await answer
        assert lines(written) == []

    logging.getLogger().setLevel(logging.WARNING)
    run(test())
