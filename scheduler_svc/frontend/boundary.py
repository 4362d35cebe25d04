"""Where exceptions become statuses: around every handler of ours, and nowhere else.

A `RequestError` becomes its status. Anything else that a handler lets out is a bug of ours: the caller learns INTERNAL
and no more, the log gets the traceback. An `InternalError`, a broken invariant, also ends the process, which the
supervisor then starts again; another exception ends its own call alone, because one request must not end the others.
CancelledError passes: grpc keeps the call's memory until its handler has ended by it.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import AbortError

from pagewire.scheduler_svc.errors import InternalError, InvalidArgument, RequestError
from pagewire.scheduler_svc.frontend.status import abort

_log = logging.getLogger(__name__)
_OWN_PREFIX = "/pagewire."


class ErrorBoundary(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Wraps the handlers of our services, unary and server-streaming, which are coroutine functions all."""

    def __init__(self, on_internal_error: Callable[[InternalError], None]) -> None:
        self._on_internal_error = on_internal_error

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Called by grpc for each call."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(_OWN_PREFIX):
            return handler
        # Decoding happens in here too: left to grpc, bytes that are no message end in UNKNOWN and a logged traceback.
        decode = handler.request_deserializer
        assert decode is not None, "the generated handlers all have one"
        if handler.unary_unary is not None:
            guarded = self._guard(handler.unary_unary, decode)
            return grpc.unary_unary_rpc_method_handler(guarded, None, handler.response_serializer)
        if handler.unary_stream is not None:
            guarded = self._guard(handler.unary_stream, decode)
            return grpc.unary_stream_rpc_method_handler(guarded, None, handler.response_serializer)
        return handler

    def _guard(
        self, handle: Callable[[Any, Any], Any], decode: Callable[[bytes], Any]
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        async def guarded(frame: bytes, context: Any) -> Any:
            try:
                return await handle(decode(frame), context)
            except DecodeError as error:
                await abort(context, InvalidArgument("the request", f"is not a message: {error}"))
            except RequestError as error:
                await abort(context, error)
            except AbortError:
                raise
            except Exception as error:
                _log.exception("a handler failed")
                internal = error if isinstance(error, InternalError) else InternalError(repr(error))
                if internal is error:
                    self._on_internal_error(internal)
                await abort(context, internal)

        return guarded
