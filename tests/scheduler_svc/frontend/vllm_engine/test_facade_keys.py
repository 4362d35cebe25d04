"""API keys and the facade: who may call what, and that tenants do not end each other's requests."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
from smg_grpc_proto import vllm_engine_pb2 as vllm
from smg_grpc_proto import vllm_engine_pb2_grpc
from support.frontend_world import failure, running_frontend

from pagewire.wire.model import ModelSpec
from pagewire.wire.requests import AbortRequest, FinishKind, Submit

Run = Callable[[Coroutine[Any, Any, None]], None]
KEYS = {tenant: f"sixteen-letters-of-{tenant}" for tenant in ("red", "blue")}


def test_keys_are_asked_of_everything_but_health(spec: ModelSpec, run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        keys = tmp_path / "keys"
        keys.write_text("".join(f"{tenant}:{key}\n" for tenant, key in KEYS.items()))
        red, blue = ([("authorization", f"Bearer {key}")] for key in KEYS.values())
        async with running_frontend(spec, api_keys_file=str(keys), vllm_grpc=True) as world:
            stub: Any = vllm_engine_pb2_grpc.VllmEngineStub(world.channel)
            assert (await stub.HealthCheck(vllm.HealthCheckRequest())).healthy
            for call in (
                stub.Generate(vllm.GenerateRequest(text="a")),
                stub.Abort(vllm.AbortRequest(request_ids=["mine"])),
                stub.GetModelInfo(vllm.GetModelInfoRequest()),
            ):
                assert (await failure(call)).code() is grpc.StatusCode.UNAUTHENTICATED
            asked = vllm.GenerateRequest(request_id="mine", text="a", stream=True)
            tenants, salts = [], []
            for metadata in (red, blue):
                call = stub.Generate(asked, metadata=metadata)
                submit = await world.engine.act(Submit)
                assert submit.request_id == "mine"
                tenants.append(submit.tenant)
                salts.append(submit.salt)
                await world.engine.answer(submit.handle, [1], FinishKind.LENGTH)
                assert [message.WhichOneof("response") async for message in call] == ["chunk", "complete"]
            assert tenants == list(KEYS)
            assert len(set(salts)) == 2
            for metadata, tenant in zip((red, blue), tenants, strict=True):
                call = stub.Abort(vllm.AbortRequest(request_ids=["mine"]), metadata=metadata)
                abort = await world.engine.act(AbortRequest)
                assert (abort.request_id, abort.tenant) == ("mine", tenant)
                await world.engine.reply(abort.query, 0)
                await call

    run(test())
