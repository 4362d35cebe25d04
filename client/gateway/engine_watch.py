"""The engine live: AdminService's loads and block maps as server-sent events, for any number of pages.

Pages with the same key share one stream of each, which begins with the first of them and ends with the last. It owns
those streams and keeps of each kind the newest message alone: a page that reads slowly sees fewer, and holds up nobody.
What the figures mean it does not know.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from pagewire.client.errors import Overloaded, from_rpc_error
from pagewire.client.transport import Transport
from pagewire.v1 import admin_pb2 as pb
from pagewire.v1 import admin_pb2_grpc

INTERVAL_MS = 1000
"""Between two messages of a kind."""
MAX_WATCHERS = 64
_RETRY_S = 1.0
_CHECK_S = 5.0

OpenAdmin = Callable[[str | None], Transport]
"""How to reach the admin service with this API key."""


@dataclass(eq=False, slots=True)
class _Watcher:
    """What one page has not been sent yet."""

    pending: dict[str, bytes] = field(default_factory=dict)
    has_news: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, kind: str, line: bytes) -> None:
        self.pending.pop(kind, None)  # so that the newest is the last
        self.pending[kind] = line
        self.has_news.set()


class _Shared:
    """The streams of one key, and who reads them."""

    def __init__(self, transport: Transport) -> None:
        self._channel = transport.open_aio()
        self._metadata = grpc.aio.Metadata(*transport.metadata())
        self._admin = admin_pb2_grpc.AdminServiceStub(self._channel)
        self._newest: dict[str, bytes] = {}
        self._reading: list[asyncio.Task[None]] = []
        self.watchers: set[_Watcher] = set()
        self.num_users = 0
        """Pages that read, and those whose key is being checked."""

    async def check(self) -> None:
        """Raises PagewireError where the service is not there, or the key may not ask it."""
        try:
            await self._admin.GetLoad(pb.GetLoadRequest(), timeout=_CHECK_S, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    @contextmanager
    def watched(self) -> Iterator[_Watcher]:
        """By one more page, which is told what is known already."""
        watcher = _Watcher()
        for kind, line in self._newest.items():
            watcher.tell(kind, line)
        self.watchers.add(watcher)
        if not self._reading:
            loop = asyncio.get_running_loop()
            self._reading = [loop.create_task(self._read_loads()), loop.create_task(self._read_blocks())]
        try:
            yield watcher
        finally:
            self.watchers.discard(watcher)

    async def close(self) -> None:
        """Ends the streams."""
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)
        await self._channel.close(None)

    def _tell(self, kind: str, value: dict[str, Any]) -> None:
        line = f"event: {kind}\ndata: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()
        if self._newest.get(kind) != line:
            self._newest[kind] = line
            for watcher in self.watchers:
                watcher.tell(kind, line)

    async def _read_loads(self) -> None:
        request = pb.WatchLoadRequest()
        request.interval.FromMilliseconds(INTERVAL_MS)
        while True:
            try:
                async for message in self._admin.WatchLoad(request, metadata=self._metadata):
                    self._newest.pop("trouble", None)
                    self._tell("load", {"at_s": time.monotonic(), **_figures(message.load)})
                reason = "the stream of loads ended"
            except grpc.aio.AioRpcError as error:
                reason = str(from_rpc_error(error))
            self._tell("trouble", {"message": reason})
            await asyncio.sleep(_RETRY_S)

    async def _read_blocks(self) -> None:
        """Trouble is told with the loads, except where blocks alone are not to be had."""
        request = pb.WatchBlocksRequest()
        request.interval.FromMilliseconds(INTERVAL_MS)
        while True:
            try:
                async for message in self._admin.WatchBlocks(request, metadata=self._metadata):
                    uses = base64.b64encode(message.uses).decode()
                    self._tell("blocks", {"total_blocks": message.total_blocks, "uses": uses})
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    return  # a service of an earlier release
            await asyncio.sleep(_RETRY_S)


class EngineWatch:
    """The streams of all keys."""

    def __init__(self, open_admin: OpenAdmin) -> None:
        self._open_admin = open_admin
        self._shared: dict[str | None, _Shared] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._is_ending = False

    async def check(self, api_key: str | None) -> None:
        """Raises PagewireError where the key may not watch, the service does not answer, or too many watch."""
        if self._num_users >= MAX_WATCHERS:
            raise Overloaded(f"{MAX_WATCHERS} pages watch the engine already")
        with self._using(api_key) as shared:
            await shared.check()

    async def lines(self, api_key: str | None) -> AsyncIterator[bytes]:
        """Server-sent events `load`, `blocks` and `trouble`, until this gateway ends."""
        if self._num_users >= MAX_WATCHERS:  # since it was checked
            return
        with self._using(api_key) as shared, shared.watched() as watcher:
            while not self._is_ending:
                await watcher.has_news.wait()
                watcher.has_news.clear()
                pending, watcher.pending = watcher.pending, {}
                if pending:
                    yield b"".join(pending.values())

    @property
    def _num_users(self) -> int:
        """Pages that read, and those whose key is being checked; no more keys than these have connections."""
        return sum(shared.num_users for shared in self._shared.values())

    def end(self) -> None:
        """Every page's stream ends, and so does each that is begun from now on."""
        self._is_ending = True
        for shared in self._shared.values():
            for watcher in shared.watchers:
                watcher.has_news.set()

    @contextmanager
    def _using(self, api_key: str | None) -> Iterator[_Shared]:
        """Nothing is awaited on leaving: whoever leaves may have been cancelled."""
        shared = self._shared.get(api_key)
        if shared is None:
            shared = self._shared[api_key] = _Shared(self._open_admin(api_key))
        shared.num_users += 1
        try:
            yield shared
        finally:
            shared.num_users -= 1
            if not shared.num_users:
                del self._shared[api_key]
                task = asyncio.get_running_loop().create_task(shared.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)


def _figures(load: pb.Load) -> dict[str, Any]:
    """As the contract names them; numbers as numbers."""
    said = MessageToDict(load, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    figures = {name: value if name == "state" else getattr(load, name) for name, value in said.items()}
    return {name: dict(figure) if isinstance(figure, Mapping) else figure for name, figure in figures.items()}
