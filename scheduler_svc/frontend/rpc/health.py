"""Health: grpc.health.v1, following the engine and not the listener.

SERVING when a new request would run: the engine is READY, was heard of in time, and this frontend is not draining. The
empty name and every service of a listener have the same status. Watch streams stay open through failures, and see each
change. It knows the engine only by its status.

The servicer of grpcio-health-checking lost: it holds a lock while it writes to a watcher, so one watcher that does not
read would keep the status from changing for all. Here a change waits for nobody. Health is open to callers without a
key, so watchers are counted: they must not take the calls of those who have one.

Probes have neither keys nor certificates. Where clients must have them, health has a listener of its own besides.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import msgspec
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from pagewire.scheduler_svc.frontend.rpc.listener import ADMIN_CONNECTIONS, bind, create_server
from pagewire.scheduler_svc.launch import FrontendLaunch

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

_MAX_WATCHERS = 1024
"""Of one listener."""
_MAX_MESSAGE_BYTES = 4096
"""A request is the name of a service."""

Context = grpc.aio.ServicerContext[Any, Any]


class Health:
    """One status for all listeners. `run` is its only writer."""

    def __init__(self, is_serving: Callable[[], bool], check_interval_s: float) -> None:
        """`is_serving` is asked after every `poke`, and every `check_interval_s`, because an engine that falls silent
        says nothing about it."""
        self._is_serving = is_serving
        self._check_interval_s = check_interval_s
        self._poked = asyncio.Event()
        self.status = _NOT_SERVING
        self.changed = asyncio.Event()
        """Set when `status` is replaced, and then replaced itself."""

    def add_to(self, server: grpc.aio.Server, services: Sequence[str]) -> None:
        """Serve health of these services, and of the empty name, on a server that has not started."""
        names = frozenset(("", health.SERVICE_NAME, *services))
        health_pb2_grpc.add_HealthServicer_to_server(_Servicer(self, names), server)

    def poke(self) -> None:
        """Something has changed."""
        self._poked.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            self._poked.clear()
            status = _SERVING if self._is_serving() else _NOT_SERVING
            if status != self.status:
                self.status = status
                before, self.changed = self.changed, asyncio.Event()
                before.set()
            try:
                async with asyncio.timeout(self._check_interval_s):
                    await self._poked.wait()
            except TimeoutError:
                continue


async def serve_health(
    health_: Health,
    launch: FrontendLaunch,
    services: Sequence[str],
    boundary: "grpc.aio.ServerInterceptor[Any, Any]",
) -> grpc.aio.Server:
    """A listener at `launch.health_listen` that serves these services' health and nothing else. Raises ListenError."""
    assert launch.health_listen is not None, "asked for where there is an address"
    connections = msgspec.structs.replace(launch.connections, max_connections=ADMIN_CONNECTIONS)
    server = create_server(_MAX_MESSAGE_BYTES, False, connections, [boundary])
    health_.add_to(server, services)
    bind(server, launch.health_listen, None)
    await server.start()
    return server


class _Servicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the package has no types
    """Health of one listener's services."""

    def __init__(self, health_: Health, names: frozenset[str]) -> None:
        self._health = health_
        self._names = names
        self._num_watchers = 0

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """The status now; NOT_FOUND for a service that is not here, as the protocol says."""
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, "this listener has no such service")
        return health_pb2.HealthCheckResponse(status=self._health.status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """The status now and at every change; SERVICE_UNKNOWN for a service that is not here, as the protocol says."""
        if self._num_watchers >= _MAX_WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{_MAX_WATCHERS} callers watch already")
        self._num_watchers += 1
        try:
            await self._show_changes(request, context)
        finally:
            self._num_watchers -= 1

    async def _show_changes(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        shown = None
        while True:
            changed = self._health.changed
            status = self._health.status if request.service in self._names else _UNKNOWN
            if status != shown:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                shown = status
            await changed.wait()
