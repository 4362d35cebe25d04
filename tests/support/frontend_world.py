"""A frontend in the test's own event loop, between a real gRPC channel and a scripted engine."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import msgspec
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from support.scripted_engine import LIMIT_S, ScriptedEngine

from pagewire.scheduler_svc.frontend.app import Frontend, FrontendHost
from pagewire.scheduler_svc.frontend.streams.engine_client import EngineClient
from pagewire.scheduler_svc.launch import FrontendLaunch
from pagewire.v1 import generation_pb2, inference_pb2
from pagewire.v1.admin_pb2_grpc import AdminServiceStub
from pagewire.v1.inference_pb2_grpc import InferenceServiceStub
from pagewire.v1.model_pb2_grpc import ModelServiceStub
from pagewire.wire.control import FromChild, Ready
from pagewire.wire.launch import Endpoint
from pagewire.wire.model import ModelSpec
from pagewire.wire.requests import Register

_ENGINE_OPTIONS = ("num_blocks", "block_size", "curve_secret")


@dataclass
class FrontendUnderTest:
    """What a test holds."""

    frontend: Frontend
    engine: ScriptedEngine
    ready: Ready
    channel: grpc.aio.Channel
    admin_channel: grpc.aio.Channel
    news: "asyncio.Queue[FromChild]" = field(default_factory=asyncio.Queue)
    """What the supervisor would have been told."""
    clock: "SetClock" = field(default_factory=lambda: SetClock())

    @property
    def engine_client(self) -> EngineClient:
        """The frontend's view of the engine, to wait on."""
        return self.frontend._engine

    @property
    def inference(self) -> Any:
        return InferenceServiceStub(self.channel)

    @property
    def models(self) -> Any:
        return ModelServiceStub(self.channel)

    @property
    def admin(self) -> Any:
        return AdminServiceStub(self.admin_channel)


class SetClock:
    """A monotonic clock that a test may set forward."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self._ahead_s

    def advance(self, seconds: float) -> None:
        """So much time has passed at once."""
        self._ahead_s += seconds


def make_launch(spec: ModelSpec, engine_address: str, **changes: Any) -> FrontendLaunch:
    """A launch for tests, with changes."""
    launch = FrontendLaunch(
        index=0,
        incarnation=0,
        engine=Endpoint(address=engine_address),
        model=spec,
        device="sim",
        dtype="float32",
        listen="127.0.0.1:0",
        admin_listen="127.0.0.1:0",
        reuse_port=False,
        max_num_seqs=8,
        max_model_len=512,
        max_n=16,
        max_queued=100,
        max_message_bytes=1024 * 1024,
        max_request_bytes_in_flight=8 * 1024 * 1024,
        stream_buffer_tokens=4096,
        slow_reader_timeout_s=120.0,
        engine_timeout_s=30.0,
        settings={"listen": "127.0.0.1:0"},
        started_unix_s=time.time() - 5,
    )
    return msgspec.structs.replace(launch, **changes)


@contextlib.asynccontextmanager
async def running_frontend(spec: ModelSpec, **changes: Any) -> AsyncIterator[FrontendUnderTest]:
    """Start, wait until it has registered, and stop at the end. An error of the frontend's own fails the test."""
    engine_options = {name: changes.pop(name) for name in _ENGINE_OPTIONS if name in changes}
    curve = changes.pop("curve", None)
    trust: grpc.ChannelCredentials | None = changes.pop("trust", None)  # where it serves with TLS
    async with ScriptedEngine(**engine_options) as engine:
        news: asyncio.Queue[FromChild] = asyncio.Queue()
        ids = itertools.count()
        clock = SetClock()
        host = FrontendHost(
            clock=clock,
            draw_seed=lambda: 12345,
            draw_request_id=lambda: f"drawn-{next(ids)}",
            send=news.put_nowait,
            beat=lambda: None,
            offer=news.put_nowait,
        )
        endpoint = Endpoint(address=engine.address, curve=curve)
        frontend = Frontend(make_launch(spec, engine.address, engine=endpoint, **changes), host)
        ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        running = asyncio.create_task(frontend.run(ready.set_result))
        await asyncio.wait([running, ready], timeout=LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        addresses = ready.result()
        try:
            await engine.act(Register)
            async with (
                open_channel(addresses.address, trust) as channel,
                open_channel(addresses.admin_address, trust) as admin_channel,
            ):
                under_test = FrontendUnderTest(frontend, engine, addresses, channel, admin_channel, news, clock)
                await until(lambda: under_test.engine_client.status.info is not None)
                yield under_test
        finally:  # also where the test failed: what is left running would disturb the next
            frontend.stop()
            async with asyncio.timeout(LIMIT_S):
                await running


def open_channel(address: str, trust: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    """A channel with connections of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    if trust is None:
        return grpc.aio.insecure_channel(address, options)
    return grpc.aio.secure_channel(address, trust, options)


async def until(condition: Any) -> None:
    """Let the loop run until something holds."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 (it holds inside the product, which has no event for tests)
            await asyncio.sleep(0.001)


def ids_request(*ids: int, **fields: Any) -> inference_pb2.StreamGenerateRequest:
    """A stream for a prompt of token ids."""
    prompt = generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=ids or (1, 2, 3)))
    return inference_pb2.StreamGenerateRequest(generation=generation_pb2.Generation(prompt=prompt, **fields))


def unary(request: inference_pb2.StreamGenerateRequest) -> inference_pb2.GenerateRequest:
    """The same for Generate."""
    return inference_pb2.GenerateRequest(generation=request.generation)


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """The error that a call ends with."""
    try:
        async with asyncio.timeout(LIMIT_S):
            if hasattr(call, "read"):
                while await call.read() is not grpc.aio.EOF:
                    pass
            else:
                await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call succeeded")


def violated_field(error: grpc.aio.AioRpcError) -> str:
    """The field that an INVALID_ARGUMENT names."""
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    return detail(error, error_details_pb2.BadRequest).field_violations[0].field


def detail(error: grpc.aio.AioRpcError, kind: type) -> Any:
    """A google.rpc detail of an error."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            message = kind()
            packed.Unpack(message)
            return message
    raise AssertionError(f"no {kind.__name__} in {status}")
