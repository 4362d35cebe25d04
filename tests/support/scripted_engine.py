"""An engine that does what a test says: a ROUTER that speaks `pagewire.wire.requests` to one frontend.

`act` waits for what the frontend sends next; the other methods send. Everything runs on the test's event loop, and
every wait has a limit.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import zmq
import zmq.asyncio

from pagewire.wire.codec import Codec
from pagewire.wire.columns import pack, unpack
from pagewire.wire.plan import DeviceMemory
from pagewire.wire.requests import (
    Abort,
    Answer,
    EngineInfo,
    EngineState,
    FinishKind,
    FromFrontend,
    Load,
    Pause,
    Register,
    Rejected,
    RejectKind,
    Resume,
    SeqFinished,
    SeqStarted,
    Submit,
    ToFrontend,
    TokenBatch,
)

LIMIT_S = 10.0
Wanted = TypeVar("Wanted")


class ScriptedEngine:
    """Binds an address of its own; `address` is for the frontend's launch file."""

    def __init__(
        self,
        num_blocks: int = 64,
        block_size: int = 16,
        max_model_len: int = 512,
        curve_secret: bytes | None = None,
    ) -> None:
        """With a CURVE secret key, only peers that know the public one get through."""
        self._curve_secret = curve_secret
        self._directory = Path(tempfile.mkdtemp(prefix="pw"))
        self.address = f"ipc://{self._directory}/e"
        self.num_blocks, self.block_size, self.max_model_len = num_blocks, block_size, max_model_len
        self.state = EngineState.READY
        self.submits: dict[int, Submit] = {}
        """Every submission received, by handle."""
        self.aborted: list[int] = []
        """Every handle that was aborted."""
        self.paused: set[int] = set()
        """Every handle that is paused."""
        self.identity = b""
        self.is_mute = False
        """Whether even a Register goes unanswered."""
        self._received: asyncio.Queue[FromFrontend] = asyncio.Queue()
        self._to: Codec[ToFrontend] = Codec(ToFrontend)
        self._from: Codec[FromFrontend] = Codec(FromFrontend)
        self._context = zmq.asyncio.Context()
        self._bind()

    def _bind(self) -> None:
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        if self._curve_secret is not None:
            self._socket.setsockopt(zmq.CURVE_SERVER, 1)
            self._socket.setsockopt(zmq.CURVE_SECRETKEY, self._curve_secret)
        self._socket.bind(self.address)
        self._reader = asyncio.get_running_loop().create_task(self._read())

    async def __aenter__(self) -> "ScriptedEngine":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._context.term()
        shutil.rmtree(self._directory)

    def _end(self) -> None:
        self._reader.cancel()
        self._socket.close(linger=0)

    def restart(self) -> None:
        """Die and come back at the same address, knowing nothing."""
        self._end()
        self.submits.clear()
        self.identity = b""
        self._received = asyncio.Queue()
        self._bind()

    async def _read(self) -> None:
        while True:
            self.identity, frame = await self._socket.recv_multipart()
            message = self._from.decode(frame)
            match message:
                case Register() if not self.is_mute:
                    await self.info()
                case Submit():
                    self.submits[message.handle] = message
                case Abort():
                    self.aborted.extend(unpack(message.handles).tolist())
                case Pause():
                    self.paused.update(unpack(message.handles).tolist())
                case Resume():
                    self.paused.difference_update(unpack(message.handles).tolist())
                case _:
                    pass
            self._received.put_nowait(message)

    async def act(self, kind: type[Wanted]) -> Wanted:
        """The next message from the frontend, which must be of this kind."""
        async with asyncio.timeout(LIMIT_S):
            message = await self._received.get()
        assert isinstance(message, kind), message
        return message

    async def send(self, message: ToFrontend) -> None:
        """Anything."""
        await self._socket.send_multipart([self.identity, self._to.encode(message)])

    async def send_raw(self, *frames: bytes) -> None:
        """Frames as they are."""
        await self._socket.send_multipart([self.identity, *frames])

    async def info(self, state: EngineState | None = None) -> None:
        """EngineInfo, with this state from now on."""
        self.state = self.state if state is None else state
        await self.send(
            EngineInfo(
                state=self.state,
                num_blocks=self.num_blocks,
                block_size=self.block_size,
                max_model_len=self.max_model_len,
                weights_bytes=1000,
                kv_cache_bytes=2000,
                attention_backend="scripted",
                linear_backend="scripted",
                versions={"torch": "0"},
                worker_restarts=3,
                device_memory=DeviceMemory(90, 1, 2, 3, 4, 5),
            )
        )

    async def load(self) -> None:
        """A heartbeat with numbers that a test can recognize."""
        await self.send(Load(self.state, 1, 2, 3, 4, self.num_blocks, 6, 7, 8, 9, 10, 300, 100, 11, 12))

    async def start(
        self, handle: int, cached_tokens: int = 0, queue_s: float = 0.0, forecast_s: float | None = None
    ) -> None:
        """Say that a sequence's first step is planned."""
        await self.send(TokenBatch([SeqStarted(handle, cached_tokens, queue_s, forecast_s)], b"", b"", []))

    async def step(self, tokens: Iterable[tuple[int, int]], finished: Iterable[tuple[int, FinishKind]] = ()) -> None:
        """One step's (handle, token) pairs, and the sequences that end with it."""
        pairs = np.array(list(tokens), dtype=np.int32).reshape(-1, 2)
        ends = [SeqFinished(handle, kind) for handle, kind in finished]
        await self.send(TokenBatch([], pack(pairs[:, 0]), pack(pairs[:, 1]), ends))

    async def answer(self, handle: int, tokens: list[int], kind: FinishKind = FinishKind.EOS) -> None:
        """A whole output, a token a step."""
        await self.start(handle)
        for token in tokens[:-1]:
            await self.step([(handle, token)])
        await self.step([(handle, token) for token in tokens[-1:]], [(handle, kind)])

    async def reject(self, handle: int, kind: RejectKind, field: str = "", retry_after_s: float | None = None) -> None:
        """Do not take a sequence."""
        await self.send(Rejected(handle, kind, field, "the script says no", retry_after_s))

    async def reply(self, query: int, value: int) -> None:
        """Answer a query."""
        await self.send(Answer(query, value))
