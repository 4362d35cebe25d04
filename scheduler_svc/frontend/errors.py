"""Errors: what can go wrong, as exceptions, the whole tree, and nothing about how a client is told.

A `RequestError` is the fate of one request and never touches another. An `InternalError` is a broken invariant of
ours: it ends the process. `rpc/status.py` turns the tree into gRPC statuses; nothing else does.

    PagewireError
    ├── RequestError
    │   ├── InvalidArgument     the request breaks a limit or asks for what is not built
    │   ├── NotFound            it names something that is not here
    │   ├── ResourceExhausted   the server has no room for it now
    │   ├── Unavailable         a part of the server is away; the same request may succeed later
    │   ├── DeadlineExceeded    its time ran out before it began
    │   ├── Unauthenticated     nothing says who calls: no key, no name in a certificate
    │   ├── OutOfRange          it goes on from where nothing is kept any more
    │   ├── KvEventsLost        what it follows has a gap
    │   ├── Unimplemented       a method that is not served
    │   ├── PermissionDenied    the caller is known and may not do this
    │   └── ModelFailed         the worker could not compute a token for it
    └── InternalError
"""

import enum


class UnavailableReason(enum.Enum):
    """Which part is away; the value is `google.rpc.ErrorInfo.reason`."""

    WORKER_LOST = "WORKER_LOST"
    ENGINE_LOST = "ENGINE_LOST"
    DRAINING = "DRAINING"
    LOADING = "LOADING"


class PagewireError(Exception):
    """The root. Its text is written for the person who sent the request."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestError(PagewireError):
    """One request ends; the server goes on."""


class InvalidArgument(RequestError):
    """`field` is the path of the field in the request message, such as `generation.sampling.temperature`.

    `problem` continues the sentence that the path begins, and gives the value and the limit.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem


class NotFound(RequestError):
    """Something that the request names is not here."""


class Exhausted(enum.Enum):
    """What there is no room for; the value is the reason that metrics give."""

    QUEUE = "queue_full"
    QUEUE_TIME = "queue_timeout"
    TENANT = "tenant_limit"
    REQUEST_BYTES = "request_bytes"
    CALLS = "too_many_calls"
    TEXT_WORK = "text_work"
    """Tokenizing, rendering templates, compiling grammars."""
    READER = "slow_reader"
    MEMORY = "kv_memory"


class ResourceExhausted(RequestError):
    """No room now; `retry_after_s` is when to try again, none where trying again changes nothing."""

    def __init__(self, message: str, retry_after_s: float | None, kind: Exhausted) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.kind = kind


class Unavailable(RequestError):
    """A part of the server is away."""

    def __init__(self, reason: UnavailableReason, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


class DeadlineExceeded(RequestError):
    """The call's deadline passed before the engine had the request."""


class Unauthenticated(RequestError):
    """No key, or one that is not known; or a certificate without the name that counts."""


class PermissionDenied(RequestError):
    """A known caller who may not make the call."""


class OutOfRange(RequestError):
    """A place in a stream that is gone, or not there yet."""


class KvEventsLost(RequestError):
    """Events that were told to others and cannot be told to this caller: what it knows of the cache is void."""


class Unimplemented(RequestError):
    """A method of a service that this server does not answer."""


class ModelFailed(RequestError):
    """A step of the worker could not go on with this request; other requests are unharmed."""


class InternalError(PagewireError):
    """A broken invariant of ours."""
