"""Floods and failures from outside: each costs its own call, with a status that says why, and no other's."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from google.rpc import error_details_pb2
from support.frontend_world import detail, failure, ids_request, running_frontend, unary, until, violated_field
from support.service import serve
from support.tiny_tokenizer import make_spec

from pagewire.scheduler_svc.frontend import app as app_module
from pagewire.scheduler_svc.frontend.detokenizer import UnsupportedTokenizerError
from pagewire.v1 import generation_pb2, inference_pb2, model_pb2
from pagewire.wire.model import ModelSpec
from pagewire.wire.requests import Submit

Run = Callable[[Coroutine[Any, Any, None]], None]
INFERENCE = "pagewire.v1.InferenceService"


def text_request(text: str) -> inference_pb2.StreamGenerateRequest:
    return inference_pb2.StreamGenerateRequest(
        generation=generation_pb2.Generation(prompt=generation_pb2.Prompt(text=text))
    )


def panicking_spec(directory: Path) -> ModelSpec:
    """A model whose tokenizer panics wherever it adds special tokens: its template names one that it does not give."""
    spec = make_spec(directory)
    assert spec.tokenizer_file is not None
    file = Path(spec.tokenizer_file)
    sequence = [{"Sequence": {"id": "A", "type_id": 0}}]
    file.write_text(
        json.dumps(
            json.loads(file.read_text())
            | {
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, *sequence],
                    "pair": [*sequence, {"Sequence": {"id": "B", "type_id": 1}}],
                    "special_tokens": {},
                }
            }
        )
    )
    return spec


@pytest.mark.parametrize("text", ["in place", "on a thread " * 100])
def test_a_panic_in_a_library_ends_its_own_call_with_internal(run: Run, tmp_path: Path, text: str) -> None:
    async def test() -> None:
        async with running_frontend(panicking_spec(tmp_path)) as world:
            for call in (
                world.inference.StreamGenerate(text_request(text)),
                world.inference.Generate(unary(text_request(text))),
                world.inference.Tokenize(inference_pb2.TokenizeRequest(prompt=generation_pb2.Prompt(text=text))),
            ):
                error = await failure(call)
                assert error.code() is grpc.StatusCode.INTERNAL
                assert "key" not in (error.details() or "")
            without = inference_pb2.TokenizeRequest(prompt=generation_pb2.Prompt(text=text), add_special_tokens=False)
            assert (await world.inference.Tokenize(without)).ids
            assert (await world.models.ListModels(model_pb2.ListModelsRequest())).models
            assert not world.engine.submits

    run(test())


def test_a_definition_that_the_library_panics_at_ends_the_start_with_a_sentence(run: Run, tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    assert spec.tokenizer_file is not None
    definition = json.loads(Path(spec.tokenizer_file).read_text())
    definition["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    Path(spec.tokenizer_file).write_text(json.dumps(definition))

    async def test() -> None:
        with pytest.raises(UnsupportedTokenizerError, match="cannot be read: Precompiled"):
            async with running_frontend(spec):
                pass

    run(test())


def test_a_call_without_a_message_is_refused(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            for method in ("Generate", "StreamGenerate"):
                call = world.channel.stream_stream(f"/{INFERENCE}/{method}")(iter([]))
                assert violated_field(await failure(call)) == "the request"

    run(test())


def test_calls_beyond_the_limit_are_refused_until_others_end(
    spec: ModelSpec, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "MAX_CALLS", 3)

    async def test() -> None:
        async with running_frontend(spec) as world:
            calls = []
            for _ in range(3):
                calls.append(world.inference.StreamGenerate(ids_request()))
                await world.engine.act(Submit)
            for refused in (
                world.inference.StreamGenerate(ids_request()),
                world.models.ListModels(model_pb2.ListModelsRequest()),
            ):
                error = await failure(refused)
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "the limit is 3" in (error.details() or "")
                assert detail(error, error_details_pb2.RetryInfo).retry_delay.seconds == 1
            calls[0].cancel()
            await until(lambda: len(world.engine.aborted) == 1)

            async def is_let_in() -> bool:
                try:
                    return bool((await world.models.ListModels(model_pb2.ListModelsRequest())).models)
                except grpc.aio.AioRpcError:
                    return False

            async with asyncio.timeout(10):
                while not await is_let_in():  # grpc ends a cancelled call's task in its own time
                    pass

    run(test())


FLOOD = """
import asyncio, collections, json, sys, grpc
from pagewire.v1 import generation_pb2 as g, inference_pb2 as pb
from pagewire.v1.inference_pb2_grpc import InferenceServiceStub
request = pb.StreamGenerateRequest(generation=g.Generation(
    prompt=g.Prompt(token_ids=g.TokenIds(ids=[1, 2, 3])), stopping=g.Stopping(max_tokens=3, ignore_eos=True)))
async def main():
    async with grpc.aio.insecure_channel(sys.argv[1]) as channel:
        stub = InferenceServiceStub(channel)
        await channel.channel_ready()
        ends = collections.Counter()
        async def one():
            call = stub.StreamGenerate(request, timeout=120)
            try:
                while (await call.read()) is not grpc.aio.EOF:
                    pass
                ends["OK"] += 1
            except grpc.aio.AioRpcError as error:
                has_details = any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata())
                ends[error.code().name + (" with details" if has_details else "")] += 1
        print("ready", flush=True)
        sys.stdin.readline()
        await asyncio.gather(*[one() for _ in range(int(sys.argv[2]))])
        print(json.dumps(ends))
asyncio.run(main())
"""


@pytest.mark.slow
def test_two_thousand_streams_at_once_are_served_or_told_to_come_again() -> None:
    with serve(max_queued=1024) as service:
        clients = [
            subprocess.Popen(
                [sys.executable, "-c", FLOOD, service.address, "1000"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        for client in clients:
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n"
        ends: dict[str, int] = {}
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("\n")
            client.stdin.flush()
        for client in clients:
            out, _ = client.communicate(timeout=120)
            for end, number in msgspec.json.decode(out).items():
                ends[end] = ends.get(end, 0) + number
        assert sum(ends.values()) == 2000
        assert set(ends) <= {"OK", "RESOURCE_EXHAUSTED with details"}, ends
        assert ends["OK"] >= 1000
