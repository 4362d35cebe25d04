"""AdminService: what operators ask and order, on a listener of its own.

It reads the engine's status and passes orders on: aborts and flushes to the engine, draining to the supervisor, which
alone can tell every frontend.
"""

import asyncio
import importlib.metadata
import platform
import time
from collections.abc import Callable
from typing import Any

import grpc
import msgspec

from pagewire.scheduler_svc.frontend.errors import Exhausted, InvalidArgument, NotFound, ResourceExhausted
from pagewire.scheduler_svc.frontend.limits import (
    MAX_DRAIN_GRACE_S,
    MAX_WATCH_INTERVAL_S,
    MIN_BLOCKS_INTERVAL_S,
    MIN_WATCH_INTERVAL_S,
    duration_s,
)
from pagewire.scheduler_svc.frontend.rpc.drain import RunningCalls
from pagewire.scheduler_svc.frontend.rpc.message_fields import refuse_unknown_fields
from pagewire.scheduler_svc.frontend.streams.engine_client import EngineClient
from pagewire.scheduler_svc.launch import FrontendLaunch
from pagewire.v1 import admin_pb2 as pb
from pagewire.v1 import admin_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

_DEFAULT_WATCH_INTERVAL_S = 1.0
DEFAULT_BLOCKS_WATCHED = 65_536
MAX_BLOCKS_WATCHED = 1 << 20
"""So that a message stays below what gRPC's clients take by default."""
MAX_BLOCK_WATCHERS = 16
"""Each costs the engine a millisecond for 8,192 blocks."""
_LIBRARIES = ("grpcio", "protobuf", "tokenizers", "jinja2", "pyzmq", "msgspec", "numpy")


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """Serves pagewire.v1.AdminService."""

    def __init__(
        self,
        launch: FrontendLaunch,
        engine: EngineClient,
        calls: RunningCalls,
        request_drain: Callable[[float | None], None],
    ) -> None:
        """`request_drain` asks the supervisor to drain, with a grace time in seconds or none."""
        self._launch = launch
        self._engine = engine
        self._calls = calls
        self._request_drain = request_drain
        self._num_block_watchers = 0

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        """Versions, settings, memory."""
        refuse_unknown_fields(request)
        response = pb.GetServerInfoResponse(
            version=importlib.metadata.version("pagewire"),
            model=self._launch.model.name,
            device=self._launch.device,
            versions={"python": platform.python_version()}
            | {library: importlib.metadata.version(library) for library in _LIBRARIES},
            settings=self._launch.settings,
        )
        # The supervisor's start is a date; both processes are on one machine.
        response.uptime.FromMilliseconds(max(0, round((time.time() - self._launch.started_unix_s) * 1000)))
        info = self._engine.status.info
        if info is not None:
            response.attention_backend = info.attention_backend
            response.linear_backend = info.linear_backend
            response.versions.update(info.versions)
            response.worker_restarts = info.worker_restarts
            response.memory.weights_bytes = info.weights_bytes
            response.memory.kv_cache_bytes = info.kv_cache_bytes
            response.memory.num_blocks = info.num_blocks
            response.memory.block_size = info.block_size
            if info.device_memory is not None:
                response.memory.device.CopyFrom(pb.DeviceMemory(**msgspec.structs.asdict(info.device_memory)))
        return response

    async def GetLoad(self, request: pb.GetLoadRequest, context: Context) -> pb.GetLoadResponse:
        """The engine's last heartbeat."""
        refuse_unknown_fields(request)
        return pb.GetLoadResponse(load=self._load())

    async def WatchLoad(  # type: ignore[override]  # the stubs know generators alone
        self, request: pb.WatchLoadRequest, context: Context
    ) -> None:
        """At every interval, until the caller has enough."""
        refuse_unknown_fields(request)
        interval_s = _interval_s(request, MIN_WATCH_INTERVAL_S)
        while True:
            await context.write(pb.WatchLoadResponse(load=self._load()))
            await asyncio.sleep(interval_s)

    async def WatchBlocks(  # type: ignore[override]  # the stubs know generators alone
        self, request: pb.WatchBlocksRequest, context: Context
    ) -> None:
        """At every interval, until the caller has enough."""
        refuse_unknown_fields(request)
        interval_s = _interval_s(request, MIN_BLOCKS_INTERVAL_S)
        most = request.max_blocks if request.HasField("max_blocks") else DEFAULT_BLOCKS_WATCHED
        if not 1 <= most <= MAX_BLOCKS_WATCHED:
            raise InvalidArgument("max_blocks", f"is {most}; its range is 1 to {MAX_BLOCKS_WATCHED}")
        if self._num_block_watchers >= MAX_BLOCK_WATCHERS:
            raise ResourceExhausted(
                f"{MAX_BLOCK_WATCHERS} calls of WatchBlocks run already, the limit", 1.0, Exhausted.CALLS
            )
        self._num_block_watchers += 1
        try:
            while True:
                uses, total = await self._engine.read_blocks(most)
                await context.write(pb.WatchBlocksResponse(uses=uses, total_blocks=total))
                await asyncio.sleep(interval_s)
        finally:
            self._num_block_watchers -= 1

    def _load(self) -> pb.Load:
        status = self._engine.status
        message = pb.Load(state=pb.ServiceState.Name(int(status.state)))
        if self._calls.draining.is_set():
            message.state = pb.SERVICE_STATE_DRAINING
        dropped = self._engine.dropped
        message.dropped_frames = sum(dropped.values())
        message.dropped_by_kind.update({f"frontend.{kind}": count for kind, count in dropped.items()})
        load = status.load
        if load is not None:
            message.running_sequences = load.running
            message.waiting_sequences = load.waiting
            message.used_blocks = load.used_blocks
            message.cached_blocks = load.cached_blocks
            message.total_blocks = load.total_blocks
            message.prompt_tokens = load.prompt_tokens
            message.cached_prompt_tokens = load.cached_prompt_tokens
            message.output_tokens = load.output_tokens
            message.preemptions = load.preemptions
            message.paused_sequences = load.paused
            message.steps = load.steps
            message.dropped_frames += load.dropped_frames
            message.dropped_by_kind.update(load.dropped)
            message.worker_busy_us = load.worker_busy_us
            message.worker_idle_us = load.worker_idle_us
            worker_us = load.worker_busy_us + load.worker_idle_us
            message.worker_idle_share = load.worker_idle_us / worker_us if worker_us else 0.0
        return message

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        """Wherever the request runs; its own frontend hears of it from the engine.

        Raises NotFound where the tenant has no such request; of other tenants' that says nothing.
        """
        refuse_unknown_fields(request)
        if not request.request_id:
            raise InvalidArgument("request_id", "is empty; it is required")
        tenant = request.tenant if request.HasField("tenant") else None
        aborted = await self._engine.abort_request(request.request_id, tenant)
        if not aborted:
            raise NotFound(f"no output of a request {request.request_id!r} runs or waits")
        return pb.AbortResponse(aborted_outputs=aborted)

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        """Answers when the supervisor's order to drain has come back to this frontend."""
        refuse_unknown_fields(request)
        grace_s: float | None = None
        if request.HasField("grace"):
            grace_s = duration_s(request.grace, "grace", lambda s: 0 <= s <= MAX_DRAIN_GRACE_S, "0 to 1 hour")
        self._request_drain(grace_s)
        await self._calls.draining.wait()
        return pb.DrainResponse()

    async def FlushCache(self, request: pb.FlushCacheRequest, context: Context) -> pb.FlushCacheResponse:
        """Forget cached prefixes."""
        refuse_unknown_fields(request)
        return pb.FlushCacheResponse(flushed_blocks=await self._engine.flush_cache())


def _interval_s(request: pb.WatchLoadRequest | pb.WatchBlocksRequest, least_s: float) -> float:
    if not request.HasField("interval"):
        return _DEFAULT_WATCH_INTERVAL_S
    return duration_s(
        request.interval,
        "interval",
        lambda s: least_s <= s <= MAX_WATCH_INTERVAL_S,
        f"{least_s:g} s to 1 hour",
    )
