"""Floods and failures from outside: each costs its own call, with a status that says why, and no other's."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import msgspec
import psutil
import pytest
from google.rpc import error_details_pb2
from support.frontend_process import ready, supervised
from support.frontend_world import detail, failure, ids_request, running_frontend, unary, until, violated_field
from support.service import serve
from support.tiny_tokenizer import make_spec

from pagewire.scheduler_svc.frontend import app as app_module
from pagewire.scheduler_svc.frontend.text.chat_template import ChatTemplate
from pagewire.scheduler_svc.frontend.text.detokenizer import UnsupportedTokenizerError
from pagewire.scheduler_svc.frontend.text.template_process import Rendered
from pagewire.scheduler_svc.frontend.text.tokenizer import LONG_CHARACTERS, TextTokenizer
from pagewire.v1 import generation_pb2, inference_pb2, model_pb2
from pagewire.v1.inference_pb2_grpc import InferenceServiceStub
from pagewire.wire.control import Stop
from pagewire.wire.model import ModelSpec
from pagewire.wire.requests import Register, Submit

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
        with pytest.raises(UnsupportedTokenizerError, match="cannot be read, because of its normalizer: Precompiled"):
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


MEGABYTES = 3_900_000
MAX_JSON = 1_000_000


def chat_request(unused: int, content: str = "hi") -> inference_pb2.StreamGenerateRequest:
    """A chat with so many bytes of tools that its template does not look at."""
    message = generation_pb2.ChatMessage(role=generation_pb2.CHAT_ROLE_USER, content=content)
    sizes = [min(MAX_JSON, unused - done) for done in range(0, unused, MAX_JSON)]
    tools = [
        generation_pb2.Tool(name=f"unused_{index}", parameters=json.dumps({"text": "x" * size}))
        for index, size in enumerate(sizes)
    ]
    chat = generation_pb2.Chat(messages=[message], tools=tools)
    return inference_pb2.StreamGenerateRequest(
        generation=generation_pb2.Generation(prompt=generation_pb2.Prompt(chat=chat))
    )


@pytest.mark.parametrize("kind", ["text", "chat", "tokenize"])
def test_text_that_can_never_fit_is_refused_by_its_length(
    spec: ModelSpec, run: Run, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    long = "The quick brown fox. " * 20_000

    async def test() -> None:
        async with running_frontend(spec) as world:

            def tokenized(*_: object) -> list[int]:
                raise AssertionError("it was tokenized")

            monkeypatch.setattr(TextTokenizer, "_encode", tokenized)
            if kind == "text":
                call, field = world.inference.StreamGenerate(text_request(long)), "generation.prompt.text"
            elif kind == "chat":
                call, field = world.inference.StreamGenerate(chat_request(1, long)), "generation.prompt.chat"
            else:
                request = inference_pb2.TokenizeRequest(prompt=generation_pb2.Prompt(text=long))
                call, field = world.inference.Tokenize(request), "prompt.text"
            error = await failure(call)
            assert violated_field(error) == field
            assert "511 tokens, the most that a prompt may be, stand for at most" in (error.details() or "")

    run(test())


def test_bytes_of_requests_are_bounded_for_all_and_for_each_tenant(
    spec: ModelSpec, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {tenant: f"{tenant}-key-0123456789" for tenant in ("ann", "bob", "cem")}
    (tmp_path / "keys").write_text("".join(f"{tenant}:{key}\n" for tenant, key in keys.items()))

    async def test() -> None:
        rendered = asyncio.Event()
        rendering: asyncio.Queue[None] = asyncio.Queue()

        async def render(*_: object, **__: object) -> Rendered:
            rendering.put_nowait(None)
            await rendered.wait()
            return Rendered("hi")

        monkeypatch.setattr(ChatTemplate, "render", render)
        changes = {"api_keys_file": str(tmp_path / "keys"), "max_request_bytes_in_flight": 1_000_000}
        async with running_frontend(spec, **changes) as world:

            def send(tenant: str, size: int) -> Any:
                metadata = [("authorization", f"Bearer {keys[tenant]}")]
                return world.inference.StreamGenerate(chat_request(size), metadata=metadata)

            async def is_let_in(call: Any) -> bool:
                is_read, is_over = asyncio.ensure_future(rendering.get()), asyncio.ensure_future(call.code())
                await asyncio.wait([is_read, is_over], return_when=asyncio.FIRST_COMPLETED)
                is_let_in = is_read.done()
                is_read.cancel()
                is_over.cancel()
                return is_let_in

            async def refusal(call: Any) -> str:
                error = await failure(call)
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert detail(error, error_details_pb2.RetryInfo).retry_delay.seconds == 1
                return error.details() or ""

            kept = {tenant: send(tenant, size) for tenant, size in (("ann", 400_000), ("bob", 300_000))}
            assert all([await is_let_in(call) for call in kept.values()])
            assert "tenant ann" in await refusal(send("ann", 150_000))
            assert "over the limit of 1000000" in await refusal(send("cem", 350_000))
            kept.pop("ann").cancel()
            async with asyncio.timeout(10):
                # One that holds nothing may have more than half. grpc ends a cancelled call in its own time.
                while not await is_let_in(again := send("ann", 600_000)):
                    pass
            rendered.set()
            for _ in range(2):
                await world.engine.act(Submit)
            # The prompts of those that wait are ids by now: they hold nothing.
            last = send("cem", 990_000)
            await world.engine.act(Submit)
            for call in (*kept.values(), again, last):
                call.cancel()

    run(test())


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["waits in the queue", "is refused"])
def test_of_a_call_that_waits_or_was_refused_no_request_is_held(
    spec: ModelSpec, run: Run, tmp_path: Path, fate: str
) -> None:
    async def test() -> None:
        limits = {"max_message_bytes": 4 * 1024 * 1024, "max_request_bytes_in_flight": 64 * 1024 * 1024}
        async with supervised(tmp_path, spec, **limits) as (frontend, engine):
            address = (await ready(frontend)).address
            await engine.act(Register)
            process = psutil.Process(frontend.process.pid)
            unlimited = [("grpc.max_send_message_length", -1)]
            async with grpc.aio.insecure_channel(address, options=unlimited) as channel:
                stub: Any = InferenceServiceStub(channel)
                calls, sizes = [], []
                request = chat_request(MEGABYTES) if fate == "waits in the queue" else text_request("x" * MEGABYTES)
                for _ in range(60):
                    calls.append(stub.StreamGenerate(request, wait_for_ready=True))
                    if fate == "is refused":
                        assert (await failure(calls[-1])).code() is grpc.StatusCode.INVALID_ARGUMENT
                    else:
                        await engine.act(Submit)
                    sizes.append(process.memory_info().rss)
                # What the first ones took is used again; 50 more would be 200 MB, once for each copy.
                assert sizes[-1] - sizes[9] < 50 * 1024 * 1024
                for call in calls:
                    call.cancel()
            frontend.send(Stop())

    run(test())


def test_a_short_prompt_does_not_wait_for_long_ones(spec: ModelSpec, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    freed = threading.Event()
    encode = TextTokenizer._encode

    def slow(self: TextTokenizer, text: str, add_special_tokens: bool) -> list[int]:
        if len(text) >= LONG_CHARACTERS:
            freed.wait(30)
        return encode(self, text, add_special_tokens)

    monkeypatch.setattr(TextTokenizer, "_encode", slow)

    async def test() -> None:
        async with running_frontend(spec, max_model_len=100_000, num_blocks=8192) as world:
            world.engine.max_model_len = 100_000
            await world.engine.info()
            await until(lambda: world.engine_client.status.info.max_model_len == 100_000)

            def tokenize(text: str) -> Any:
                return world.inference.Tokenize(
                    inference_pb2.TokenizeRequest(prompt=generation_pb2.Prompt(text=text)), timeout=30
                )

            long = [tokenize("the fox " * 10_000) for _ in range(3)]
            for _ in range(8):
                assert (await tokenize("the fox " * 500)).ids
            assert [await call.code() for call in long if call.done()] == []
            long.pop().cancel()
            freed.set()
            for call in long:
                assert (await call).ids

    try:
        run(test())
    finally:
        freed.set()


def test_clients_that_do_not_send_their_messages_hold_nobody_up_for_long(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            raw = world.channel.stream_stream(f"/{INFERENCE}/StreamGenerate")
            silent = [raw() for _ in range(40)]
            for call in silent:
                await call.wait_for_connection()
            async with asyncio.timeout(10):
                assert (await world.models.ListModels(model_pb2.ListModelsRequest())).models
            # One that has lost its turn is served once its message comes.
            await silent[0].write(ids_request().SerializeToString())
            await silent[0].done_writing()
            await world.engine.act(Submit)
            for call in silent:
                call.cancel()

    run(test())
