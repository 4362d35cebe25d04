"""Session with the service that is measured: a channel for the load, and AdminService where its address is known.

The load client reads raw messages and their times and parses them after the run, because on few cores it shares them
with the service: parsing while measuring would be charged to the service.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc

from pagewire.client import requests
from pagewire.client.bench.workload import Job
from pagewire.client.errors import from_rpc_error
from pagewire.client.prompts import Parameters
from pagewire.client.transport import Transport
from pagewire.client.types import Model
from pagewire.v1 import admin_pb2, admin_pb2_grpc
from pagewire.v1.inference_pb2 import StreamGenerateRequest

_METHOD = "/pagewire.v1.InferenceService/StreamGenerate"
_ADMIN_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """How to reach what is measured, and what it serves."""

    transport: Transport
    admin: Transport | None
    model: Model


@dataclass(slots=True, eq=False)
class Trace:
    """What one stream brought and when, in seconds on the load client's clock."""

    due_s: float
    """When the request was to be sent: an open loop's schedule, else when it was sent."""
    times_s: array[float] = field(default_factory=lambda: array("d"))
    frames: list[bytes] = field(default_factory=list)
    """Raw messages, one for each time."""
    ended_s: float | None = None
    """When the stream had ended well; none while it runs, and where it failed or was cut."""
    error: str = ""


@dataclass(frozen=True, slots=True)
class WorkerTime:
    """What the worker's time went to since the engine's start."""

    busy_us: int
    idle_us: int
    steps: int


class Session:
    """Use it as `async with`, in the event loop that runs the load."""

    def __init__(self, service: Service, clock: Callable[[], float] = time.perf_counter) -> None:
        self.service = service
        self.clock = clock
        self._channel = service.transport.open_aio()
        self._metadata = service.transport.metadata()
        # Without (de)serializers: bytes in, bytes out. The stubs know neither that nor the end of a stream.
        untyped: Any = self._channel
        self._generate = untyped.unary_stream(_METHOD)
        self._end: object = vars(grpc.aio)["EOF"]
        self._admin_channel = None if service.admin is None else service.admin.open_aio()
        self._admin: Any = None if self._admin_channel is None else admin_pb2_grpc.AdminServiceStub(self._admin_channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close(None)
        if self._admin_channel is not None:
            await self._admin_channel.close(None)

    def encode(self, job: Job, temperature: float) -> bytes:
        """The request of a job; end-of-sequence tokens are ignored, so that it generates as many tokens as it says."""
        parameters: Parameters = {
            "model": self.service.model.name,
            "temperature": temperature,
            "max_tokens": job.max_tokens,
            "ignore_eos": True,
        }
        if job.ids_alone:
            parameters["return_text"] = False
        return StreamGenerateRequest(generation=requests.generation(job.prompt, parameters)).SerializeToString()

    async def stream(self, frame: bytes, due_s: float | None = None, trace: Trace | None = None) -> Trace:
        """Run one request to its end. A failure is recorded, not raised; being cancelled cancels the call."""
        clock = self.clock
        trace = Trace(clock() if due_s is None else due_s) if trace is None else trace
        arrived, keep, end = trace.times_s.append, trace.frames.append, self._end
        call = self._generate(frame, metadata=self._metadata)
        try:
            read = call.read
            while (message := await read()) is not end:
                arrived(clock())
                keep(message)
            trace.ended_s = clock()
        except grpc.aio.AioRpcError as error:
            trace.error = str(from_rpc_error(error)) or type(error).__name__
        except asyncio.CancelledError:
            call.cancel()
            raise
        return trace

    async def worker_time(self) -> WorkerTime | None:
        """The engine's last report; none where AdminService is not known."""
        if self._admin is None:
            return None
        load = (await self._ask(self._admin.GetLoad, admin_pb2.GetLoadRequest())).load
        return WorkerTime(load.worker_busy_us, load.worker_idle_us, load.steps)

    async def flush_cache(self) -> None:
        """Forget cached prefixes, so that a repeated run finds none of the run before."""
        if self._admin is not None:
            await self._ask(self._admin.FlushCache, admin_pb2.FlushCacheRequest())

    async def server_info(self) -> admin_pb2.GetServerInfoResponse | None:
        """Settings, versions and memory; none where AdminService is not known."""
        if self._admin is None:
            return None
        info: admin_pb2.GetServerInfoResponse = await self._ask(
            self._admin.GetServerInfo, admin_pb2.GetServerInfoRequest()
        )
        return info

    async def _ask(self, method: Any, request: object) -> Any:
        assert self.service.admin is not None
        try:
            return await method(request, timeout=_ADMIN_TIMEOUT_S, metadata=self.service.admin.metadata())
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error


def idle_share(before: WorkerTime | None, after: WorkerTime | None) -> float | None:
    """Share of the worker's time between two reports that it waited for a plan; none where nothing ran."""
    if before is None or after is None:
        return None
    busy, idle = after.busy_us - before.busy_us, after.idle_us - before.idle_us
    return idle / (busy + idle) if busy + idle > 0 else None
