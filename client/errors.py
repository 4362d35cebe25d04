"""Errors: what can go wrong, as one tree of exceptions.

gRPC's errors are turned into these at one border, `from_rpc_error`; nothing else in the client raises or catches a
`grpc.RpcError` past it. Every gRPC status has its place in `_BY_STATUS`, which a test holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

_LARGER = re.compile(r"larger than max \((\d+) vs\. (\d+)\)")
_DETAILS_KEY = "grpc-status-details-bin"
_Detail = TypeVar("_Detail", bound=Message)


class PagewireError(Exception):
    """Anything that the client raises on purpose. `str()` is one line for a person to read."""


class InvalidRequest(PagewireError):
    """The request breaks the contract; sending it again will not help. `field` is its path where known, else empty."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class TooLarge(InvalidRequest):
    """The request has more bytes than the server takes in one message."""


class NotFound(PagewireError):
    """No model of that name is served."""


class Unauthenticated(PagewireError):
    """The API key is missing or unknown."""


class PermissionDenied(PagewireError):
    """The API key is known and does not allow this."""


class Overloaded(PagewireError):
    """The server has no room now. `retry_after_s` is its advice, none where it gave none."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(PagewireError):
    """No server answers, or it cannot serve now.

    `reason` is LOADING, WORKER_LOST, ENGINE_LOST or DRAINING where the server said so, else empty, as when the
    connection broke.
    """

    def __init__(self, message: str, *, reason: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


class DeadlineExceeded(PagewireError):
    """The call took longer than its `timeout_s`."""


class Cancelled(PagewireError):
    """The call was cancelled here, by its own program."""


class ServerError(PagewireError):
    """The server failed, and says that it was not the request's fault."""


class ProtocolError(PagewireError):
    """What came back does not follow the contract: another service, or another version of this one."""


class LaunchError(PagewireError):
    """A service that was to run on this machine did not start, or its parts are not installed."""


class BatchError(PagewireError):
    """Some of several prompts failed. `outcomes` has one entry per prompt, in order: its result or its error."""

    def __init__(self, outcomes: Sequence[object]) -> None:
        failed = [(index, outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, PagewireError)]
        index, first = failed[0]
        super().__init__(f"{len(failed)} of {len(outcomes)} prompts failed; the first, prompt {index}: {first}")
        self.outcomes = tuple(outcomes)


_BY_STATUS: Mapping[grpc.StatusCode, type[PagewireError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.ALREADY_EXISTS: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.UNKNOWN: ServerError,
    grpc.StatusCode.ABORTED: ServerError,
    grpc.StatusCode.DATA_LOSS: ServerError,
    grpc.StatusCode.UNIMPLEMENTED: ProtocolError,
    grpc.StatusCode.OK: ProtocolError,
}

_CANCELLED_HERE = ("Locally cancelled by application!", "Channel closed")
"""What gRPC for Python says, among other things, of those that its own program cancelled."""
_REQUEST_ID_METADATA = "pagewire-request-id"
"""Comes first of all that a call brings that was let in."""


def from_rpc_error(error: grpc.RpcError) -> PagewireError:
    """The exception for a failed call, synchronous or not; the caller raises it `from error`."""
    # Both of gRPC's error classes have these three methods; the base class that they share declares none.
    code: grpc.StatusCode = error.code()
    message: str = error.details() or f"the call failed with {code.name}"
    metadata: Iterable[tuple[str, str | bytes]] | None = error.trailing_metadata()  # type: ignore[assignment]
    details = _details(metadata)
    match _BY_STATUS[code]:
        case kind if kind is InvalidRequest:
            return InvalidRequest(message, field=_field(details))
        case kind if kind is Overloaded:
            if sizes := _LARGER.search(message):  # gRPC's own refusal of a message, which waiting does not cure
                return TooLarge(
                    f"the message has {sizes[1]} bytes; this side takes at most {sizes[2]} "
                    "(a server's setting max_message_bytes)"
                )
            return Overloaded(message, retry_after_s=_retry_after_s(details))
        case kind if kind is Cancelled and _is_unseen(error, message):
            # gRPC's own server cancels calls that no service has seen yet, when it shuts down or too many wait.
            return Unavailable(f"the call was cancelled on its way: {message}")
        case kind if kind is Unavailable:
            return Unavailable(message, reason=_reason(details), retry_after_s=_retry_after_s(details))
        case kind:
            return kind(message)


def _is_unseen(error: grpc.RpcError, message: str) -> bool:
    """Whether a call was cancelled neither here nor while it was answered, by a proxy that gave it up for instance."""
    if any(said in message for said in _CANCELLED_HERE):
        return False
    metadata: Iterable[tuple[str, str | bytes]] | None = error.initial_metadata()  # type: ignore[attr-defined]
    return all(key != _REQUEST_ID_METADATA for key, _ in metadata or ())


def _details(metadata: Iterable[tuple[str, str | bytes]] | None) -> status_pb2.Status:
    """The google.rpc.Status of a failed call; an empty one where there is none or where it does not decode."""
    status = status_pb2.Status()
    for key, value in metadata or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                status.ParseFromString(value)
            except DecodeError:
                return status_pb2.Status()
    return status


def _field(status: status_pb2.Status) -> str:
    for request in _unpacked(status, error_details_pb2.BadRequest):
        if request.field_violations:
            return str(request.field_violations[0].field)
    return ""


def _reason(status: status_pb2.Status) -> str:
    return next((str(info.reason) for info in _unpacked(status, error_details_pb2.ErrorInfo)), "")


def _retry_after_s(status: status_pb2.Status) -> float | None:
    for info in _unpacked(status, error_details_pb2.RetryInfo):
        if info.HasField("retry_delay"):
            return float(max(0.0, info.retry_delay.seconds + info.retry_delay.nanos / 1e9))
    return None


def _unpacked(status: status_pb2.Status, kind: type[_Detail]) -> Iterator[_Detail]:
    """The details of one kind; those that do not decode are passed over, as all of a status is."""
    for detail in status.details:
        found = kind()
        try:
            if detail.Unpack(found):
                yield found
        except DecodeError:
            continue


def brief(value: object) -> str:
    """A value as a message may quote it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
