"""The boundary: where calls arrive and exceptions become statuses, around each interceptor and handler alone.

A `RequestError` becomes its status. Anything else that is let out is a bug of ours or of a library: the caller learns
INTERNAL and no more, the log gets the traceback. An `InternalError`, a broken invariant, also ends the process, which
the supervisor then starts again; any other ends its own call alone, because one request must not end the others. That
holds for exceptions that are no `Exception` too: grpc answers those never. CancelledError passes: grpc keeps the call's
memory until its handler has ended by it.

Calls are counted from their arrival to their end, whatever the service; more than fit are refused with a delay to try
again after. A request's bytes are read here and not by grpc, which would keep them for as long as the call lasts, an
hour's stream or an hour in the queue: here nothing holds them once the message has been made of them. And they are read
a few at a time: until a call's message is asked for, HTTP/2 lets its client send 64 KB of it (`listener`), and so
hundreds of large ones that come at once wait at their clients: 300 of 3.9 MB took 150 MB, where all of them were in
memory before. A client that is slow to send holds nobody up for long. How many fields a message has is looked at before
it is decoded (`message_fields`), and large ones are decoded one after the other, so that streams get on between them.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError, Message
from grpc._cython import cygrpc
from grpc.aio import AbortError

from pagewire.scheduler_svc.endings import is_ending
from pagewire.scheduler_svc.frontend.errors import (
    Exhausted,
    InternalError,
    InvalidArgument,
    RequestError,
    ResourceExhausted,
)
from pagewire.scheduler_svc.frontend.fairness import FairTurns
from pagewire.scheduler_svc.frontend.rpc.load_reports import LoadReports
from pagewire.scheduler_svc.frontend.rpc.message_fields import refuse_many_fields
from pagewire.scheduler_svc.frontend.rpc.status import abort

_log = logging.getLogger(__name__)
_OWN_PREFIXES = ("/pagewire.", "/vllm.grpc.engine.")
_RETRY_S = 1.0
_READS_AT_ONCE = 16
_LARGE_BYTES = 64 * 1024
"""Longer messages are decoded in turn."""
_LONGEST_TURN_S = 0.25
"""After which the next message is asked for, whether a call's own has come or not."""


class ErrorBoundary(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """The first interceptor of a listener. Our handlers, which are coroutine functions all, are wrapped."""

    def __init__(
        self,
        max_calls: int,
        on_internal_error: Callable[[InternalError], None],
        on_refusal: Callable[[RequestError | InternalError], None] | None = None,
        load_reports: LoadReports | None = None,
    ) -> None:
        """`max_calls`: how many calls of the listener may run at once; `on_refusal` hears what each ends with that ends
        with an error; `load_reports` go into their trailers."""
        self._on_refusal = on_refusal
        self._max_calls = max_calls
        self._num_calls = 0
        self._places = FairTurns(_READS_AT_ONCE)
        self._decoding = FairTurns(1)
        self._on_internal_error = on_internal_error
        self._load_reports = load_reports

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Called by grpc for each call, in the task that runs the call to its end."""
        try:
            self._count()
            handler = await continuation(handler_call_details)
        except BaseException as error:
            if is_ending(error):
                raise
            return self._refusal(self._for_caller(error))
        if handler is None or not handler_call_details.method.startswith(_OWN_PREFIXES):
            return handler
        # Decoding happens in here too: left to grpc, bytes that are no message end in UNKNOWN and a logged traceback.
        # To grpc the requests are streams, because of those it keeps no message; on the wire one is like the other.
        decode = handler.request_deserializer
        assert decode is not None, "the generated handlers all have one"
        kind: type[Message] = decode.__self__  # type: ignore[attr-defined]  # it is the message's class method FromString
        if handler.unary_unary is not None:
            guarded = self._guard(handler.unary_unary, kind)
            return grpc.stream_unary_rpc_method_handler(guarded, None, handler.response_serializer)
        if handler.unary_stream is not None:
            guarded = self._guard(handler.unary_stream, kind)
            return grpc.stream_stream_rpc_method_handler(guarded, None, handler.response_serializer)
        return handler

    def _count(self) -> None:
        if self._num_calls >= self._max_calls:
            raise ResourceExhausted(
                f"{self._num_calls} calls run on this listener; the limit is {self._max_calls}",
                _RETRY_S,
                Exhausted.CALLS,
            )
        call = asyncio.current_task()
        assert call is not None, "grpc runs each call in a task of its own"
        self._num_calls += 1
        call.add_done_callback(self._ended)

    def _ended(self, _call: "asyncio.Task[Any]") -> None:
        self._num_calls -= 1

    def _guard(self, handle: Callable[[Any, Any], Any], kind: type[Message]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def guarded(_requests: object, context: Any) -> Any:
            try:
                return await answered(context)
            except grpc.aio.InternalError:
                # What was to be sent could not be: the connection is gone, and grpc is about to cancel the call.
                raise asyncio.CancelledError from None

        async def answered(context: Any) -> Any:
            try:
                # No name is given to frame or message, so that neither lives longer than the handler wants it.
                answer = await handle(await self._message(context, kind), context)
            except (AbortError, grpc.aio.InternalError):
                raise
            except BaseException as error:
                if is_ending(error):
                    raise
                await self._abort(context, self._for_caller(error))
            if self._load_reports is not None:
                self._load_reports.succeeded(context)
            return answer

        return guarded

    async def _abort(self, context: Any, error: RequestError | InternalError) -> NoReturn:
        trailer = () if self._load_reports is None else self._load_reports.failed(error)
        await abort(context, error, trailer)

    def _refusal(self, error: RequestError | InternalError) -> "grpc.RpcMethodHandler[Any, Any]":
        """A handler that answers with the error. Streaming both ways, so that it waits for no message."""

        async def refuse(_requests: object, context: Any) -> None:
            await self._abort(context, error)

        return grpc.stream_stream_rpc_method_handler(refuse)

    async def _message(self, context: Any, kind: type[Message]) -> Message:
        """The call's message, decoded."""
        frame = await self._read(context)
        if not isinstance(frame, bytes):  # grpc.aio.EOF
            raise InvalidArgument("the request", "is missing: the call brought no message")
        if len(frame) <= _LARGE_BYTES:
            return _decoded(frame, kind)
        await self._decoding.take(context.peer())
        try:
            return _decoded(frame, kind)
        finally:
            self._decoding.free()

    async def _read(self, context: Any) -> Any:
        """The call's message, in its turn."""
        await self._places.take(context.peer())
        place = [self._places]

        def give_back() -> None:
            while place:
                place.pop().free()

        timer = asyncio.get_running_loop().call_later(_LONGEST_TURN_S, give_back)
        try:
            return await context.read()
        finally:
            timer.cancel()
            give_back()

    def _for_caller(self, error: BaseException) -> RequestError | InternalError:
        """What a call ends with."""
        if isinstance(error, cygrpc.ExecuteBatchError):
            _log.debug("a call's client went away while it was answered: %s", error)
        elif not isinstance(error, RequestError):
            _log.error("a call failed", exc_info=error)
        if isinstance(error, InternalError):
            self._on_internal_error(error)
        _forget_frames(error)
        told = error if isinstance(error, RequestError | InternalError) else InternalError(repr(error))
        if self._on_refusal is not None and not isinstance(error, cygrpc.ExecuteBatchError):
            self._on_refusal(told)
        return told


def _forget_frames(error: BaseException) -> None:
    """grpc keeps what a call ended with in a cycle with the call. The frames that it came through would stay with it,
    and what they hold, a message of megabytes perhaps, until the collector came round."""
    found: BaseException | None = error
    while found is not None and found.__traceback__ is not None:
        found.__traceback__ = None
        found = found.__cause__ or found.__context__


def _decoded(frame: bytes, kind: type[Message]) -> Message:
    refuse_many_fields(frame, kind)
    try:
        return kind.FromString(frame)
    except DecodeError as error:
        raise InvalidArgument("the request", f"is not a message: {error}") from error
