"""The application: OpenAI's endpoints over ASGI, each call answered by one or several of the service's.

A caller's key goes on to the service, which knows whose it is; calls end there when the caller goes away. It keeps
nothing but connections.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from pagewire.client.aio import AsyncClient
from pagewire.client.aio_stream import AsyncStream
from pagewire.client.errors import Cancelled, NotFound, PagewireError, TooLarge
from pagewire.client.gateway import pages
from pagewire.client.gateway.answers import (
    LAST_LINE,
    ChatChunks,
    CompletionChunks,
    Heading,
    chat_answer,
    completion_answer,
    event_line,
)
from pagewire.client.gateway.bodies import ChatBody, CompletionBody, read
from pagewire.client.gateway.engine_watch import EngineWatch, OpenAdmin
from pagewire.client.gateway.errors import said
from pagewire.client.gateway.requests import Wanted, of_chat, of_completion
from pagewire.client.types import Delta, Finished, HealthStatus, Model, Result, Started, Usage

_CHAT = "/v1/chat/completions"
MAX_BODY_BYTES = 16 * 1024 * 1024
_MAX_CLIENTS = 256
"""Keys with a connection of their own; the one that was used least lately loses its."""
_NOT_BUILT = ("/v1/responses", "/v1/embeddings", "/v1/moderations", "/v1/images/generations", "/v1/audio/speech")

T = TypeVar("T")
OpenClient = Callable[[str | None], AsyncClient]
"""A client with this API key."""


class Gateway:
    """What the endpoints share."""

    def __init__(self, open_client: OpenClient, open_admin: OpenAdmin | None = None) -> None:
        """Without `open_admin` nobody can watch the engine."""
        self._open_client = open_client
        self._watch = None if open_admin is None else EngineWatch(open_admin)
        self._clients: OrderedDict[str | None, AsyncClient] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    def application(self) -> Starlette:
        """To be run by an ASGI server."""
        routes = [
            Route(_CHAT, self._guarded(self._chat), methods=["POST"]),
            Route("/v1/completions", self._guarded(self._completion), methods=["POST"]),
            Route("/v1/models", self._guarded(self._models)),
            Route("/v1/models/{name:path}", self._guarded(self._model)),
            Route("/health", self._guarded(self._health)),
            Route("/engine/events", self._guarded(self._engine_events)),
            *pages.routes(),
            *[Route(path, self._guarded(self._not_built), methods=["GET", "POST"]) for path in _NOT_BUILT],
        ]
        return Starlette(
            routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: _not_as_it_is_called}
        )

    def end_watching(self) -> None:
        """Streams that would not end by themselves do. For when the server is told to end, which waits for them."""
        if self._watch is not None:
            self._watch.end()

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.gather(*[client.close() for client in self._clients.values()], *self._closing)

    def _guarded(self, handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """With errors in OpenAI's shape."""

        async def guarded(request: Request) -> Response:
            try:
                return await handle(request)
            except PagewireError as error:
                return _error(error, is_chat=request.url.path == _CHAT)

        return guarded

    def _client(self, request: Request) -> AsyncClient:
        """The caller's."""
        api_key = _api_key(request)
        client = self._clients.get(api_key)
        if client is None:
            client = self._clients[api_key] = self._open_client(api_key)
            if len(self._clients) > _MAX_CLIENTS:
                _, oldest = self._clients.popitem(last=False)
                self._close_later(oldest)
        self._clients.move_to_end(api_key)
        return client

    def _close_later(self, client: AsyncClient) -> None:
        task = asyncio.get_running_loop().create_task(client.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _chat(self, request: Request) -> Response:
        wanted = of_chat(read(await _body(request), ChatBody))
        client = self._client(request)
        if wanted.is_stream:
            return await _streamed(request, client, wanted, "chat.completion", ChatChunks)
        (result,) = await _answered(request, client, wanted)
        heading = Heading("chat.completion", _model_name(wanted), result.request_id)
        return _json(chat_answer(heading, result, has_logprobs=wanted.has_logprobs))

    async def _completion(self, request: Request) -> Response:
        wanted = of_completion(read(await _body(request), CompletionBody))
        client = self._client(request)
        if wanted.is_stream:
            return await _streamed(request, client, wanted, "text_completion", CompletionChunks)
        results = await _answered(request, client, wanted)
        heading = Heading("text_completion", _model_name(wanted), results[0].request_id)
        return _json(completion_answer(heading, results, has_logprobs=wanted.has_logprobs))

    async def _models(self, request: Request) -> Response:
        models = await self._client(request).models()
        return _json({"object": "list", "data": [_described(model) for model in models]})

    async def _model(self, request: Request) -> Response:
        return _json(_described(await self._client(request).model(request.path_params["name"])))

    async def _health(self, request: Request) -> Response:
        status = await self._client(request).health()
        return Response(status_code=200 if status is HealthStatus.SERVING else 503)

    async def _engine_events(self, request: Request) -> Response:
        """204 where no admin address was given: a page that asks is no error."""
        if self._watch is None:
            return Response(status_code=204)
        api_key = _api_key(request)
        await self._watch.check(api_key)
        headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
        return StreamingResponse(self._watch.lines(api_key), headers=headers, media_type="text/event-stream")

    async def _not_built(self, request: Request) -> Response:
        raise NotFound(f"{request.url.path} is not served; /v1/chat/completions, /v1/completions and /v1/models are")


def _api_key(request: Request) -> str | None:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None


async def _body(request: Request) -> bytes:
    """Raises TooLarge for one that is, before all of it is read, and Cancelled where its end does not come."""
    pieces, size = [], 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > MAX_BODY_BYTES:
                raise TooLarge(f"the body has more than {MAX_BODY_BYTES} bytes")
            pieces.append(piece)
    except ClientDisconnect:
        raise Cancelled("the caller has gone away before its body was whole") from None
    return b"".join(pieces)


async def _answered(request: Request, client: AsyncClient, wanted: Wanted) -> list[Result]:
    """The whole answers; given up when the caller has gone."""
    if len(wanted.prompts) > 1:
        return await _unless_gone(request, client.generate(wanted.prompts, **wanted.parameters))
    return await _unless_gone(request, _one(client, wanted))


async def _unless_gone(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """The answer. Raises Cancelled where the caller goes away before it is there, and gives it up."""
    answering = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise Cancelled("the caller has gone away")
        return await answering
    finally:
        answering.cancel()
        gone.cancel()
        await asyncio.gather(answering, gone, return_exceptions=True)


async def _one(client: AsyncClient, wanted: Wanted) -> list[Result]:
    return [await client.generate(wanted.prompts[0], **wanted.parameters)]


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _streamed(
    request: Request, client: AsyncClient, wanted: Wanted, kind: str, chunks: type[ChatChunks] | type[CompletionChunks]
) -> Response:
    """Server-sent events. An error before the first is a response of its own; one behind it is an event."""
    stream = client.stream(wanted.prompts[0], **wanted.parameters)
    try:
        started = await _unless_gone(request, stream.__anext__())
    except BaseException:
        stream.close()
        raise
    request_id = started.request_id if isinstance(started, Started) else ""
    making = chunks(
        Heading(kind, _model_name(wanted), request_id),
        wanted.parameters.get("n") or 1,
        has_logprobs=wanted.has_logprobs,
        includes_usage=wanted.includes_usage,
    )
    return StreamingResponse(_lines(stream, making), media_type="text/event-stream")


async def _lines(stream: AsyncStream, making: ChatChunks | CompletionChunks) -> AsyncIterator[bytes]:
    async with stream:
        for chunk in making.first():
            yield event_line(chunk)
        try:
            async for event in stream:
                match event:
                    case Delta():
                        new = making.delta(event)
                    case Finished():
                        new = making.finished(event)
                    case Usage():
                        new = making.last(event)
                    case _:
                        new = []
                if new:
                    yield b"".join(map(event_line, new))
        except PagewireError as error:
            yield event_line(said(error, is_chat=isinstance(making, ChatChunks)).body)
        else:
            yield LAST_LINE


def _model_name(wanted: Wanted) -> str:
    return wanted.parameters.get("model") or ""


def _described(model: Model) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "pagewire",
        "max_model_len": model.limits.max_model_len,
    }


def _json(value: dict[str, Any]) -> Response:
    return Response(json.dumps(value, ensure_ascii=False).encode(), media_type="application/json")


async def _not_as_it_is_called(request: Request, error: Exception) -> Response:
    """A path or a method that is not served, in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail.lower()}"
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    return Response(
        json.dumps(body).encode(), status_code=error.status_code, headers=error.headers, media_type="application/json"
    )


def _error(error: PagewireError, *, is_chat: bool) -> Response:
    status, body, headers = said(error, is_chat=is_chat)
    return Response(json.dumps(body).encode(), status_code=status, headers=headers, media_type="application/json")
