"""Request records: what became of each call that generates, told once, when it ends, to whoever keeps count of it.

A record has what an operator may see of a request: who, how long, how many tokens, how it ended; never its prompt, its
output or a key. It knows neither logs nor traces. Every call that reached `Generations` has exactly one, however it
ended; those that were turned away before, because nobody knows them or too many run, have none.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc
from google.rpc import code_pb2

from pagewire.scheduler_svc.frontend.errors import (
    InternalError,
    InvalidArgument,
    ModelFailed,
    PagewireError,
    Unavailable,
)
from pagewire.scheduler_svc.frontend.rpc.status import to_status
from pagewire.scheduler_svc.frontend.streams.stream import RequestStream
from pagewire.v1 import generation_pb2 as pb

_TASK_NAME = "request "
_FIELD_PATH = re.compile(r"[a-z0-9_.\[\]]{1,128}")
"""A path in the contract; one with a caller's own words, such as a schema's keys, is not told."""

Metadata = Sequence[tuple[str, str | bytes]]
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestRecord:
    """One call's end. Times are on the clock of `RequestRecords`, in seconds; none where it did not come so far."""

    request_id: str
    """Empty where the request was refused before it had one."""
    is_chat: bool
    is_streamed: bool
    tenant: str
    priority: int
    metadata: Metadata = field(repr=False)
    """Which the call brought, keys among it: not to be told as it is."""
    code: str
    """Name of the gRPC status."""
    reason: str
    """Why, where the code leaves it open: the field of an INVALID_ARGUMENT, the reason of an UNAVAILABLE."""
    finish_reasons: tuple[str, ...]
    """Of the outputs that ended, in their order."""
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    arrived_s: float
    submitted_s: float | None
    """When its prompt was token ids, and it went to the engine."""
    started_s: float | None
    """When its first step was planned."""
    first_token_s: float | None
    last_token_s: float | None
    ended_s: float


Observer = Callable[[RequestRecord], None]


class RequestRecords:
    """Makes records and hands them out. Used from the event loop's thread alone."""

    def __init__(self, observers: Sequence[Observer], clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._observers = observers
        self._clock = clock

    def watch(self, context: Context, tenant: str, *, is_streamed: bool) -> "WatchedCall":
        """A call while the block runs."""
        return WatchedCall(context, tenant, is_streamed, self._clock, self._observers)


class WatchedCall:
    """One call, which those who handle it fill in. A context manager."""

    def __init__(
        self,
        context: Context,
        tenant: str,
        is_streamed: bool,
        clock: Callable[[], float],
        observers: Sequence[Observer],
    ) -> None:
        self._context = context
        self._tenant = tenant
        self._is_streamed = is_streamed
        self._clock = clock
        self._observers = observers
        self._arrived_s = clock()
        self._request_id = ""
        self.priority = 0
        """Its own or its tenant's."""
        self.is_chat = False
        self.stream: RequestStream | None = None
        """Once it has one."""

    def name(self, request_id: str) -> None:
        """From now on this is its id, in every line that is logged in its task."""
        self._request_id = request_id
        if (task := asyncio.current_task()) is not None:
            task.set_name(_TASK_NAME + request_id)

    def __enter__(self) -> "WatchedCall":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._observers:
            return
        record = self._record(error)
        for observe in self._observers:
            observe(record)

    def _record(self, error: BaseException | None) -> RequestRecord:
        stream = self.stream
        outputs = [] if stream is None else stream.outputs
        reasons = [output.reason for output in outputs if output.reason != pb.FINISH_REASON_UNSPECIFIED]
        use = None if stream is None else stream.use
        return RequestRecord(
            request_id=self._request_id,
            is_chat=self.is_chat,
            is_streamed=self._is_streamed,
            tenant=self._tenant,
            priority=self.priority,
            metadata=tuple(self._context.invocation_metadata() or ()),
            code="OK" if error is None else self._code(error),
            reason=_reason(error),
            finish_reasons=tuple(pb.FinishReason.Name(each).removeprefix("FINISH_REASON_") for each in reasons),
            prompt_tokens=0 if use is None else use.prompt_tokens,
            cached_tokens=0 if use is None else use.cached_tokens,
            output_tokens=0 if use is None else use.output_tokens,
            arrived_s=self._arrived_s,
            submitted_s=None if use is None else use.submitted_s,
            started_s=None if use is None else use.started_s,
            first_token_s=None if use is None else use.first_token_s,
            last_token_s=None if use is None else use.last_token_s,
            ended_s=self._clock(),
        )

    def _code(self, error: BaseException) -> str:
        if isinstance(error, asyncio.CancelledError):
            left_s = self._context.time_remaining()
            return "CANCELLED" if left_s is None or left_s > 0 else "DEADLINE_EXCEEDED"
        known = error if isinstance(error, PagewireError) else InternalError(type(error).__name__)
        name: str = code_pb2.Code.Name(to_status(known).code)
        return name


def _reason(error: BaseException | None) -> str:
    match error:
        case InvalidArgument(field=field):
            return field if _FIELD_PATH.fullmatch(field) else ""
        case Unavailable(reason=reason):
            return reason.value
        case ModelFailed():
            return str(error)
        case _:
            return ""


def request_of_task() -> str:
    """The id of the request whose call the running task is; empty where it is none's."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return ""
    name = "" if task is None else task.get_name()
    return name.removeprefix(_TASK_NAME) if name.startswith(_TASK_NAME) else ""
