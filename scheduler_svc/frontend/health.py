"""grpc.health.v1, following the engine and not the listener.

SERVING when a new request would run: the engine is READY, was heard of in time, and this frontend is not draining. The
empty name and every service of a listener have the same status. Watch streams stay open through failures, and see each
change. It knows the engine only by its status.
"""

import asyncio
from collections.abc import Callable, Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """One status for all listeners. `run` is its only writer."""

    def __init__(self, is_serving: Callable[[], bool], check_interval_s: float) -> None:
        """`is_serving` is asked after every `poke`, and every `check_interval_s`, because an engine that falls silent
        says nothing about it."""
        self._is_serving = is_serving
        self._check_interval_s = check_interval_s
        self._poked = asyncio.Event()
        self._listeners: list[tuple[HealthServicer, Sequence[str]]] = []

    async def add_to(self, server: grpc.aio.Server, services: Sequence[str]) -> None:
        """Serve health of these services, and of the empty name, on a server that has not started."""
        servicer = HealthServicer()
        names = ("", health.SERVICE_NAME, *services)
        self._listeners.append((servicer, names))
        await _set(servicer, names, _NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)

    def poke(self) -> None:
        """Something has changed."""
        self._poked.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        shown = _NOT_SERVING
        while True:
            self._poked.clear()
            status = _SERVING if self._is_serving() else _NOT_SERVING
            if status != shown:
                shown = status
                for servicer, names in self._listeners:
                    await _set(servicer, names, status)
            try:
                async with asyncio.timeout(self._check_interval_s):
                    await self._poked.wait()
            except TimeoutError:
                continue


async def _set(servicer: HealthServicer, names: Sequence[str], status: int) -> None:
    for name in names:
        await servicer.set(name, status)
