"""The asyncio client's stream, and the connection that it and the client's other calls go over.

The same decisions as `sync_stream`, which `resume`, `retry` and `transcript` hold for both; only the waiting differs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Protocol, Self, TypeVar, cast

import grpc
from grpc_health.v1 import health_pb2_grpc

from pagewire.client import responses
from pagewire.client.chats import wants_parts
from pagewire.client.errors import Cancelled, PagewireError, Unavailable, from_rpc_error
from pagewire.client.resume import Answer, Ask, Resumption
from pagewire.client.retry import Attempts
from pagewire.client.transcript import Diverged, Transcript
from pagewire.client.transport import Transport
from pagewire.client.types import Delta, Event, Part, Result
from pagewire.v1 import inference_pb2, inference_pb2_grpc, model_pb2_grpc

T = TypeVar("T")


class AsyncStreamCall(Protocol):
    """A call that streams, as gRPC has it: its stub types declare less."""

    async def read(self) -> object: ...

    def cancel(self) -> bool: ...


async def told_apart(work: Awaitable[T]) -> T:
    """Await a call. Raises Cancelled where the call, and not this task, was cancelled; gRPC has one error for both."""
    try:
        return await work
    except asyncio.CancelledError as cancelled:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Cancelled("the call was cancelled") from cancelled


class AsyncConnection:
    """One channel and its stubs. `sleep` waits between tries."""

    def __init__(self, transport: Transport, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self.channel = transport.open_aio()
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.models = model_pb2_grpc.ModelServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)
        self.metadata = grpc.aio.Metadata(*transport.metadata())
        self.sleep = sleep

    def start(self, request: inference_pb2.StreamGenerateRequest, attempts: Attempts) -> AsyncStreamCall:
        """Begin a stream."""
        call = self.inference.StreamGenerate(request, timeout=attempts.remaining_s(), metadata=self.metadata)
        return cast(AsyncStreamCall, call)

    async def ask(self, ask: Ask, attempts: Attempts) -> Answer:
        """What a resumption needs to know."""
        match ask:
            case inference_pb2.TokenizeRequest():
                return await told_apart(
                    self.inference.Tokenize(ask, timeout=attempts.remaining_s(), metadata=self.metadata)
                )
            case inference_pb2.DetokenizeRequest():
                return await told_apart(
                    self.inference.Detokenize(ask, timeout=attempts.remaining_s(), metadata=self.metadata)
                )


class AsyncStream(AsyncIterator[Event]):
    """The events of one generation, from `AsyncClient.stream`.

    Leaving its `async with`, closing or dropping it cancels the call. A broken connection is mended behind the iterator
    where the continuation is exact; see `resume`.
    """

    def __init__(
        self,
        connection: AsyncConnection,
        request: inference_pb2.StreamGenerateRequest,
        attempts: Attempts,
        resume: bool,
    ) -> None:
        self._ended = True  # until a call is under way
        self._connection = connection
        self._attempts = attempts
        generation = request.generation
        self._transcript = Transcript(generation.n or 1, has_parts=wants_parts(generation))
        self._resumption = Resumption(request, self._transcript, resume)
        self._call = connection.start(request, attempts)
        self._ended = False

    async def __anext__(self) -> Event:
        while not self._ended:
            try:
                event = await self._receive()
            except grpc.RpcError as broken:
                await self._recover(from_rpc_error(broken), broken)
            except Diverged as diverged:
                await self._repeat(diverged)
            except BaseException:
                self.close()
                raise
            else:
                if event is not None:
                    self._attempts.progress()
                    return event
        raise StopAsyncIteration

    @property
    async def text(self) -> AsyncIterator[str]:
        """Iterates over the first output's text instead, piece by piece, none of them empty."""
        async for event in self:
            match event:
                case Delta(output=0) if event.text:
                    yield event.text

    @property
    async def parts(self) -> AsyncIterator[Part]:
        """Iterates over what the first output of a chat says instead, piece by piece."""
        async for event in self:
            match event:
                case Delta(output=0):
                    for part in event.parts:
                        yield part

    async def result(self) -> Result:
        """Read to the end; the whole generation, what was iterated over before included."""
        async for _ in self:
            pass
        return self._transcript.result()

    def close(self) -> None:
        """Cancel what is under way; iterating ends. The server frees the request's memory."""
        self._ended = True
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._ended:
            self.close()

    async def _receive(self) -> Event | None:
        message = await told_apart(self._call.read())
        if not isinstance(message, inference_pb2.StreamGenerateResponse):  # the end, for which gRPC has a value
            self._ended = True
            self._transcript.result()  # raises where an event is missing
            return None
        return self._transcript.accept(responses.event(message))

    async def _recover(self, error: PagewireError, cause: BaseException) -> None:
        """Submit again after `error`, as often as the policy allows, or raise it."""
        if self._transcript.complete:  # all but the status had come
            self._ended = True
            return
        while True:
            may_follow, is_resumed = self._resumption.may_follow(error), self._resumption.has_resumed
            delay = self._attempts.failed(error, is_resumed=is_resumed) if may_follow else None
            if delay is None or self._ended:
                self._ended = True
                raise error from cause
            await self._connection.sleep(delay)
            try:
                self._call = self._connection.start(await self._resubmission(), self._attempts)
                return
            except grpc.RpcError as broken:
                error, cause = from_rpc_error(broken), broken

    async def _repeat(self, diverged: Diverged) -> None:
        self.close()
        error = Unavailable(f"the connection broke, and the stream that was to continue it differs: {diverged}")
        if not self._resumption.may_follow_divergence():
            raise error from diverged
        self._ended = False
        await self._recover(error, diverged)

    async def _resubmission(self) -> inference_pb2.StreamGenerateRequest:
        steps = self._resumption.resubmission()
        try:
            ask = next(steps)
            while True:
                ask = steps.send(await self._connection.ask(ask, self._attempts))
        except StopIteration as end:
            request: inference_pb2.StreamGenerateRequest = end.value
            return request
