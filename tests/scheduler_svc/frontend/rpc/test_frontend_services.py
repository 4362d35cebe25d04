"""The other services, health, reflection, keys, draining, and bytes that are no request."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.frontend_world import detail, failure, ids_request, running_frontend, unary, until, violated_field
from support.scripted_engine import LIMIT_S
from support.tiny_tokenizer import make_tokenizer

from pagewire.scheduler_svc.frontend.errors import InternalError
from pagewire.scheduler_svc.frontend.rpc import health as health_module
from pagewire.scheduler_svc.frontend.rpc.admin import MAX_BLOCK_WATCHERS
from pagewire.scheduler_svc.frontend.rpc.auth import KeysFileError, read_keys
from pagewire.scheduler_svc.frontend.rpc.model_service import ServedModel
from pagewire.v1 import admin_pb2, generation_pb2, inference_pb2, model_pb2
from pagewire.v1.inference_pb2_grpc import InferenceServiceStub
from pagewire.wire.control import Drain, Drained, DrainRequested
from pagewire.wire.model import ModelSpec
from pagewire.wire.requests import AbortRequest, BlockUses, EngineState, FlushCache, ReadBlocks, Register, Submit

Run = Callable[[Coroutine[Any, Any, None]], None]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
INFERENCE, MODEL, ADMIN = (f"pagewire.v1.{name}Service" for name in ("Inference", "Model", "Admin"))
KEY, ADMIN_KEY = "0123456789abcdef", "fedcba9876543210"


async def check(channel: grpc.aio.Channel, service: str) -> int:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


def test_the_model_is_described(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            (listed,) = (await world.models.ListModels(model_pb2.ListModelsRequest())).models
            model = (await world.models.GetModel(model_pb2.GetModelRequest(name="tiny"))).model
            assert model == listed
            assert (model.name, model.architecture, model.dtype) == ("tiny", "qwen3", "float32")
            limits = model.limits
            assert (limits.max_model_len, limits.vocab_size, limits.max_kv_tokens) == (512, 384, 1024)
            assert (limits.max_n, limits.max_queued, limits.max_message_bytes) == (16, 100, 1024 * 1024)
            assert (limits.max_stop_strings, limits.max_stop_string_bytes) == (16, 256)
            capabilities = model.capabilities
            assert capabilities.text
            assert capabilities.chat
            assert not capabilities.logprobs
            assert not capabilities.constraints
            assert not capabilities.penalties
            assert list(model.eos_token_ids) == list(spec.eos_token_ids)
            assert (model.weights_digest, model.tokenizer_digest) == ("random:0", "sha256:test")
            error = await failure(world.models.GetModel(model_pb2.GetModelRequest(name="other")))
            assert error.code() is grpc.StatusCode.NOT_FOUND

    run(test())


def test_text_and_ids_both_ways(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            tokenizer = make_tokenizer()
            for text in ("Grüße 🙂<|im_end|>", "hello " * 1000):
                request = inference_pb2.TokenizeRequest(prompt=generation_pb2.Prompt(text=text))
                tokenized = await world.inference.Tokenize(request)
                assert list(tokenized.ids) == tokenizer.encode(text).ids
                assert tokenized.text == text
                for skip in (True, False):
                    request = inference_pb2.DetokenizeRequest(ids=tokenized.ids, skip_special_tokens=skip)
                    back = (await world.inference.Detokenize(request)).text
                    assert back == tokenizer.decode(list(tokenized.ids), skip_special_tokens=skip)
            prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=[1, 2]))
            same = await world.inference.Tokenize(inference_pb2.TokenizeRequest(prompt=prompt))
            assert list(same.ids) == [1, 2]
            assert not same.HasField("text")
            half = make_tokenizer().encode("🙂").ids[:-1]
            assert (await world.inference.Detokenize(inference_pb2.DetokenizeRequest(ids=half))).text == "�"
            for request, field in [
                (inference_pb2.TokenizeRequest(prompt=prompt, add_special_tokens=True), "add_special_tokens"),
                (inference_pb2.TokenizeRequest(), "prompt"),
            ]:
                assert violated_field(await failure(world.inference.Tokenize(request))) == field
            error = await failure(world.inference.Detokenize(inference_pb2.DetokenizeRequest(ids=[1, 384])))
            assert violated_field(error) == "ids[1]"
            many = inference_pb2.DetokenizeRequest(ids=[1] * 131_073)
            assert violated_field(await failure(world.inference.Detokenize(many))) == "ids"

    run(test())


def test_operators_see_the_engine_and_reach_it(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            info = await world.admin.GetServerInfo(admin_pb2.GetServerInfoRequest())
            assert (info.model, info.device, info.attention_backend) == ("tiny", "sim", "scripted")
            assert info.worker_restarts == 3
            assert (info.memory.num_blocks, info.memory.block_size, info.memory.kv_cache_bytes) == (64, 16, 2000)
            device = info.memory.device
            assert (device.total_bytes, device.before_model_bytes, device.buffer_bytes) == (90, 1, 2)
            assert (device.activation_bytes, device.graph_bytes, device.free_bytes) == (3, 4, 5)
            assert info.versions["torch"] == "0"
            assert "grpcio" in info.versions
            assert info.settings["listen"] == "127.0.0.1:0"
            assert 5 <= info.uptime.seconds < 60
            await world.engine.send_raw(b"garbage")
            await world.engine.load()
            await until(lambda: world.engine_client.status.load is not None)
            load = (await world.admin.GetLoad(admin_pb2.GetLoadRequest())).load
            assert load.state == admin_pb2.SERVICE_STATE_READY
            counts = [load.running_sequences, load.waiting_sequences, load.used_blocks, load.cached_blocks]
            assert counts == [1, 2, 3, 4]
            totals = [load.prompt_tokens, load.cached_prompt_tokens, load.output_tokens, load.preemptions, load.steps]
            assert totals == [6, 7, 8, 9, 10]
            assert load.worker_idle_share == 0.25
            assert load.worker_busy_us == 3 * load.worker_idle_us > 0
            assert load.dropped_frames == load.paused_sequences == 12
            watch = world.admin.WatchLoad(admin_pb2.WatchLoadRequest(interval=Duration(nanos=100_000_000)))
            assert [(await watch.read()).load.steps for _ in range(3)] == [10, 10, 10]
            watch.cancel()
            slow = world.admin.WatchLoad(admin_pb2.WatchLoadRequest(interval=Duration(nanos=99_000_000)))
            assert violated_field(await failure(slow)) == "interval"

            blocks = world.admin.WatchBlocks(
                admin_pb2.WatchBlocksRequest(interval=Duration(nanos=500_000_000), max_blocks=10_000)
            )
            for uses in (bytes([0, 1, 255, 254] * 2500), bytes(10_000)):
                read = asyncio.ensure_future(blocks.read())
                for first, count in ((0, 8192), (8192, 1808)):
                    query = await world.engine.act(ReadBlocks)
                    assert (query.first, query.count) == (first, count)
                    await world.engine.send(BlockUses(query.query, uses[first : first + count], 20_000))
                assert await read == admin_pb2.WatchBlocksResponse(uses=uses, total_blocks=20_000)
            blocks.cancel()
            for wrong, field in (({"max_blocks": 0}, "max_blocks"), ({"max_blocks": 1 << 21}, "max_blocks")):
                assert (
                    violated_field(await failure(world.admin.WatchBlocks(admin_pb2.WatchBlocksRequest(**wrong))))
                    == field
                )
            watches = [world.admin.WatchBlocks(admin_pb2.WatchBlocksRequest()) for _ in range(MAX_BLOCK_WATCHERS)]
            for _ in watches:
                await world.engine.act(ReadBlocks)
            late = await failure(world.admin.WatchBlocks(admin_pb2.WatchBlocksRequest()))
            assert late.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            for each in watches:
                each.cancel()
            hasty = admin_pb2.WatchBlocksRequest(interval=Duration(nanos=499_000_000))
            assert violated_field(await failure(world.admin.WatchBlocks(hasty))) == "interval"

            abort = asyncio.ensure_future(world.admin.Abort(admin_pb2.AbortRequest(request_id="r")))
            query = await world.engine.act(AbortRequest)
            assert (query.request_id, query.tenant) == ("r", None)  # whoever's it is
            await world.engine.reply(query.query, 2)
            assert (await abort).aborted_outputs == 2
            for tenant in ("ann", ""):
                abort = asyncio.ensure_future(world.admin.Abort(admin_pb2.AbortRequest(request_id="r", tenant=tenant)))
                query = await world.engine.act(AbortRequest)
                assert (query.request_id, query.tenant) == ("r", tenant)
                await world.engine.reply(query.query, 0)
                assert (await abort).aborted_outputs == 0
            assert violated_field(await failure(world.admin.Abort(admin_pb2.AbortRequest()))) == "request_id"
            flush = asyncio.ensure_future(world.admin.FlushCache(admin_pb2.FlushCacheRequest()))
            await world.engine.reply((await world.engine.act(FlushCache)).query, 7)
            assert (await flush).flushed_blocks == 7

    run(test())


def test_watchers_of_health_are_counted(spec: ModelSpec, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "_MAX_WATCHERS", 2)

    async def test() -> None:
        async with running_frontend(spec) as world:
            stub = health_pb2_grpc.HealthStub(world.channel)
            request = health_pb2.HealthCheckRequest()
            watchers = [stub.Watch(request) for _ in range(2)]
            for watcher in watchers:
                await watcher.read()
            assert (await failure(stub.Watch(request))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await check(world.channel, "") in (SERVING, NOT_SERVING)
            watchers[0].cancel()
            async with asyncio.timeout(LIMIT_S):
                while True:  # until the server has noticed
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        if await stub.Watch(request).read() is not grpc.aio.EOF:
                            break

    run(test())


def test_health_follows_the_engine_on_both_listeners(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            watch = health_pb2_grpc.HealthStub(world.channel).Watch(health_pb2.HealthCheckRequest(service=INFERENCE))

            async def seen(status: int) -> None:
                async with asyncio.timeout(LIMIT_S):
                    while (await watch.read()).status != status:
                        pass

            await world.engine.info(EngineState.READY)
            await seen(SERVING)
            for channel, services in [(world.channel, ("", INFERENCE, MODEL)), (world.admin_channel, ("", ADMIN))]:
                for service in services:
                    assert await check(channel, service) == SERVING
            stub = health_pb2_grpc.HealthStub(world.channel)
            error = await failure(stub.Check(health_pb2.HealthCheckRequest(service="x")))
            assert error.code() is grpc.StatusCode.NOT_FOUND
            for state, reason in [
                (EngineState.RECOVERING, "WORKER_LOST"),
                (EngineState.LOADING, "LOADING"),
            ]:
                await world.engine.info(state)
                await seen(NOT_SERVING)
                error = await failure(world.inference.Generate(unary(ids_request())))
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                assert detail(error, error_details_pb2.ErrorInfo).reason == reason
                await world.engine.info(EngineState.READY)
                await seen(SERVING)
            world.engine.is_mute = True
            world.clock.advance(31)  # engine_timeout_s is 30
            await seen(NOT_SERVING)
            assert await check(world.admin_channel, ADMIN) == NOT_SERVING
            error = await failure(world.inference.Generate(unary(ids_request())))
            assert detail(error, error_details_pb2.ErrorInfo).reason == "ENGINE_LOST"
            await world.engine.act(Register)  # in case that it was given up
            assert await check(world.admin_channel, ADMIN) == NOT_SERVING
            await world.engine.load()
            await seen(SERVING)

    run(test())


def test_draining_in_its_order(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            kept = world.inference.StreamGenerate(ids_request(1))
            finishing = await world.engine.act(Submit)
            cut = world.inference.StreamGenerate(ids_request(2))
            await world.engine.act(Submit)
            drain = asyncio.ensure_future(world.admin.Drain(admin_pb2.DrainRequest(grace=Duration(seconds=7))))
            assert await world.news.get() == DrainRequested(7.0)
            assert not drain.done()
            world.frontend.handle(Drain(delay_s=0.3, grace_s=0.4))
            await drain
            load = (await world.admin.GetLoad(admin_pb2.GetLoadRequest())).load
            assert load.state == admin_pb2.SERVICE_STATE_DRAINING
            watch = health_pb2_grpc.HealthStub(world.channel).Watch(health_pb2.HealthCheckRequest(service=""))
            async with asyncio.timeout(LIMIT_S):
                while (await watch.read()).status != NOT_SERVING:
                    pass
            during = world.inference.Generate(unary(ids_request(3)))  # balancers have not noticed yet
            await world.engine.answer((await world.engine.act(Submit)).handle, [40])
            assert (await during).usage.completion_tokens == 1
            await until(lambda: world.frontend._calls.is_closed)
            refused = await failure(world.inference.StreamGenerate(ids_request(4)))
            assert detail(refused, error_details_pb2.ErrorInfo).reason == "DRAINING"
            await world.engine.answer(finishing.handle, [40])
            async with asyncio.timeout(LIMIT_S):
                while await kept.read() is not grpc.aio.EOF:
                    pass
                assert await world.news.get() == Drained(1)
            error = await failure(cut)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert detail(error, error_details_pb2.ErrorInfo).reason == "DRAINING"
            error = await failure(InferenceServiceStub(world.channel).Generate(unary(ids_request())))
            assert error.code() is grpc.StatusCode.UNAVAILABLE

    run(test())


def test_reflection_lists_the_services_of_each_listener(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            for channel, expected in [(world.channel, {INFERENCE, MODEL}), (world.admin_channel, {ADMIN})]:
                stub = reflection_pb2_grpc.ServerReflectionStub(channel)
                call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
                answer = await call.read()
                names = {service.name for service in answer.list_services_response.service}
                assert names == expected | {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}

    run(test())


def test_a_keys_file_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"ann:\xff" + KEY.encode())
    with pytest.raises(KeysFileError, match=f"{tmp_path / 'keys'}: it holds text that is not UTF-8"):
        read_keys(str(tmp_path / "keys"))


def test_a_tenants_name_in_the_keys_file_has_a_limit(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{'a' * 255}:{KEY}\n")
    assert [tenant for _, tenant in read_keys(str(file))] == ["a" * 255]
    file.write_text(f"{'a' * 256}:{KEY}\n")
    with pytest.raises(KeysFileError, match="line 1: the tenant's name has 256 characters; the limit is 255"):
        read_keys(str(file))


def test_keys_are_asked_of_everything_but_health(spec: ModelSpec, run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        keys = tmp_path / "keys"
        keys.write_text(f"ann:{KEY}\n\n# operators\nadmin : {ADMIN_KEY}\n")
        async with running_frontend(spec, api_keys_file=str(keys)) as world:
            models = world.models.ListModels
            for metadata in [(), [("authorization", "Bearer wrong-key-wrong-key")], [("authorization", KEY)]]:
                error = await failure(models(model_pb2.ListModelsRequest(), metadata=metadata))
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED
                error = await failure(world.inference.StreamGenerate(ids_request(), metadata=metadata))
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            stub = reflection_pb2_grpc.ServerReflectionStub(world.channel)
            call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
            assert (await failure(call)).code() is grpc.StatusCode.UNAUTHENTICATED
            for scheme in ("Bearer", "bearer"):
                metadata = [("authorization", f"{scheme} {KEY}")]
                assert (await models(model_pb2.ListModelsRequest(), metadata=metadata)).models
            assert await check(world.channel, "") == SERVING
            load, request = world.admin.GetLoad, admin_pb2.GetLoadRequest()
            assert (await failure(load(request))).code() is grpc.StatusCode.UNAUTHENTICATED
            error = await failure(load(request, metadata=[("authorization", f"Bearer {KEY}")]))
            assert error.code() is grpc.StatusCode.PERMISSION_DENIED
            await load(request, metadata=[("authorization", f"Bearer {ADMIN_KEY}")])
            assert not world.engine.submits

    run(test())


@pytest.mark.parametrize(
    "content", ["", "# none\n", "ann\n", f":{KEY}\n", "ann:short\n", f"ann:{KEY}ü\n", f"ann:{KEY}\nbob:{KEY}\n"]
)
def test_a_keys_file_that_cannot_be_used_names_the_line_and_no_key(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(KeysFileError) as refused:
        read_keys(str(file))
    assert KEY not in str(refused.value)
    assert "short" not in str(refused.value)


def test_bytes_that_are_no_request_and_requests_that_are_too_long_disturb_nothing(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            kept = world.inference.StreamGenerate(ids_request())
            submit = await world.engine.act(Submit)
            raw = world.channel.unary_unary(f"/{INFERENCE}/Generate")
            error = await failure(raw(b"\x0a\xff\xff\xff\xff\x0f"))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            message = generation_pb2.ChatMessage(role=generation_pb2.CHAT_ROLE_USER, content="x")
            deep = generation_pb2.Chat(messages=[message], template_arguments='{"a": ' + "[" * 100_000)
            request = ids_request()
            request.generation.prompt.chat.CopyFrom(deep)
            error = await failure(world.inference.Generate(unary(request)))
            assert violated_field(error) == "generation.prompt.chat.template_arguments"
            groups = b"\xfb\x01" * 100_000  # each begins a field 31 within the one before
            assert (await failure(raw(groups))).code() is grpc.StatusCode.INVALID_ARGUMENT
            request = ids_request()
            request.generation.prompt.text = "x" * (1024 * 1024 + 1)
            error = await failure(world.inference.Generate(unary(request)))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            large = [("grpc.max_send_message_length", -1)]
            async with grpc.aio.insecure_channel(world.ready.address, options=large) as channel:
                request.generation.prompt.text = "x" * (20 * 1024 * 1024)  # small once it is compressed
                stub: Any = InferenceServiceStub(channel)
                error = await failure(stub.Generate(unary(request), compression=grpc.Compression.Gzip))
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            error = await failure(world.inference.Generate(unary(ids_request()), metadata=[("x", "y" * 65536)]))
            assert error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
            error = await failure(world.channel.unary_unary(f"/{INFERENCE}/Nothing")(b""))
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED
            await world.engine.answer(submit.handle, [40])
            async with asyncio.timeout(LIMIT_S):
                while await kept.read() is not grpc.aio.EOF:
                    pass
            assert await kept.code() is grpc.StatusCode.OK

    run(test())


def test_a_bug_that_a_batch_meets_ends_the_process_loudly(spec: ModelSpec, run: Run) -> None:
    async def meet_a_bug() -> None:
        async with running_frontend(spec) as world:
            call = world.inference.StreamGenerate(ids_request())
            submit = await world.engine.act(Submit)
            world.engine_client.sequences._open[submit.handle + 1] = "not an output"  # type: ignore[assignment]
            await world.engine.step([(submit.handle + 1, 40)])
            error = await failure(call)
            assert error.code() is grpc.StatusCode.UNAVAILABLE

    async def test() -> None:
        with pytest.raises(InternalError, match="TokenBatch"):
            await meet_a_bug()

    run(test())


def test_a_bug_in_a_handler_ends_its_own_call_alone(spec: ModelSpec, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            with monkeypatch.context() as patch:
                patch.setattr(ServedModel, "describe", lambda self: 1 // 0)
                error = await failure(world.models.ListModels(model_pb2.ListModelsRequest()))
            assert error.code() is grpc.StatusCode.INTERNAL
            assert "division" not in (error.details() or "")
            assert (await world.models.ListModels(model_pb2.ListModelsRequest())).models

    run(test())
