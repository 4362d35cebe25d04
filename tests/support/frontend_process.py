"""A frontend as a process of its own, with the test as its supervisor and a scripted engine."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from support.frontend_world import make_launch
from support.scripted_engine import LIMIT_S, ScriptedEngine

from pagewire.wire.codec import JsonCodec
from pagewire.wire.control import Alive, FromChild, Ready, ToChild
from pagewire.wire.model import ModelSpec


class Supervised:
    """A frontend process with the test as its supervisor."""

    def __init__(self, directory: Path, spec: ModelSpec, engine_address: str, **changes: Any) -> None:
        launch_file = directory / "frontend.json"
        launch_file.write_bytes(msgspec.json.encode(make_launch(spec, engine_address, **changes)))
        ours, theirs = socket.socketpair()
        self._codec: JsonCodec[ToChild] = JsonCodec(ToChild)
        self._news: JsonCodec[FromChild] = JsonCodec(FromChild)
        self.socket = ours
        options = ["--launch", str(launch_file), "--lifeline-fd", str(theirs.fileno())]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pagewire.scheduler_svc.frontend", "run", *options], pass_fds=[theirs.fileno()]
        )
        theirs.close()
        ours.setblocking(False)
        self._lines = b""

    def send(self, command: ToChild) -> None:
        self.socket.sendall(self._codec.encode_line(command))

    async def news(self) -> FromChild:
        """What it says next, other than that it is alive."""
        while isinstance(news := await self.said(), Alive):
            pass
        return news

    async def said(self) -> FromChild:
        async with asyncio.timeout(30):
            while b"\n" not in self._lines:
                received = await asyncio.get_running_loop().sock_recv(self.socket, 65536)
                assert received, "the process ended"
                self._lines += received
        line, _, self._lines = self._lines.partition(b"\n")
        return self._news.decode(line)

    async def status(self) -> int:
        async with asyncio.timeout(LIMIT_S):
            return await asyncio.to_thread(self.process.wait)


@asynccontextmanager
async def supervised(
    directory: Path, spec: ModelSpec, **changes: Any
) -> AsyncIterator[tuple[Supervised, ScriptedEngine]]:
    async with ScriptedEngine() as engine:
        frontend = Supervised(directory, spec, engine.address, **changes)
        try:
            yield frontend, engine
        finally:
            if frontend.process.poll() is None:
                frontend.process.kill()
            frontend.process.wait()
            frontend.socket.close()


async def ready(frontend: Supervised) -> Ready:
    news = await frontend.news()
    assert isinstance(news, Ready), news
    return news
