"""Statuses: the one map from the exception tree to gRPC's with google.rpc details.

It knows neither where errors arise nor which call they end. A client reads the details by type: `BadRequest` names a
field, `RetryInfo` gives a delay, `ErrorInfo` gives a machine's reason under the domain `pagewire`.

Invariant: a status fits into the metadata that any client accepts, whatever the request contained, because messages
and field paths are cut here.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from pagewire.scheduler_svc.frontend.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidArgument,
    KvEventsLost,
    ModelFailed,
    NotFound,
    OutOfRange,
    PagewireError,
    PermissionDenied,
    RequestError,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

ERROR_DOMAIN = "pagewire"
_CUT = "…"
_MAX_MESSAGE_BYTES = 1024
_MAX_FIELD_BYTES = 256
"""In UTF-8. The message travels percent-encoded, three characters for each byte that is no ASCII, and once or twice
more in the details, in base64: 6.3 KB at most, where gRPC's clients take 8."""


def to_status(error: PagewireError) -> status_pb2.Status:
    """Describe an error to a client. Raises InternalError for a class that the map does not know."""
    match error:
        case InvalidArgument():
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=_cut(error.field, _MAX_FIELD_BYTES),
                description=_cut(error.message, _MAX_MESSAGE_BYTES),
            )
            return _status(
                code_pb2.INVALID_ARGUMENT, error.message, error_details_pb2.BadRequest(field_violations=[violation])
            )
        case NotFound():
            return _status(code_pb2.NOT_FOUND, error.message)
        case ResourceExhausted():
            return _status(code_pb2.RESOURCE_EXHAUSTED, error.message, *_retry(error.retry_after_s))
        case Unavailable():
            reason = error_details_pb2.ErrorInfo(reason=error.reason.value, domain=ERROR_DOMAIN)
            return _status(code_pb2.UNAVAILABLE, error.message, reason, *_retry(error.retry_after_s))
        case DeadlineExceeded():
            return _status(code_pb2.DEADLINE_EXCEEDED, error.message)
        case Unauthenticated():
            return _status(code_pb2.UNAUTHENTICATED, error.message)
        case PermissionDenied():
            return _status(code_pb2.PERMISSION_DENIED, error.message)
        case OutOfRange():
            return _status(code_pb2.OUT_OF_RANGE, error.message)
        case KvEventsLost():
            return _status(code_pb2.DATA_LOSS, error.message)
        case Unimplemented():
            return _status(code_pb2.UNIMPLEMENTED, error.message)
        case ModelFailed():
            return _status(code_pb2.INTERNAL, error.message)
        case InternalError():
            # What broke is for the log: it may quote another request.
            return _status(code_pb2.INTERNAL, "an error of the server's own")
        case _:
            raise InternalError(f"{type(error).__name__} has no gRPC status")


async def abort(
    context: grpc.aio.ServicerContext[Any, Any],
    error: RequestError | InternalError,
    trailer: Sequence[tuple[str, bytes]] = (),
) -> NoReturn:
    """End a call with an error's status, and more in its trailer. Always raises grpc's own AbortError."""
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, (*status.trailing_metadata, *trailer))


def _status(code: int, message: str, *details: Message) -> status_pb2.Status:
    status = status_pb2.Status(code=code, message=_cut(message, _MAX_MESSAGE_BYTES))
    for detail in details:
        status.details.add().Pack(detail)
    return status


def _retry(retry_after_s: float | None) -> list[Message]:
    if retry_after_s is None:
        return []
    delay = Duration()
    delay.FromMilliseconds(round(retry_after_s * 1000))
    return [error_details_pb2.RetryInfo(retry_delay=delay)]


def _cut(text: str, max_bytes: int) -> str:
    encoded = text.encode()
    if len(encoded) <= max_bytes:
        return text
    return encoded[: max_bytes - len(_CUT.encode())].decode(errors="ignore") + _CUT
