"""Measures: what one frontend counts of its calls, for the supervisor to hear.

Owns the frontend's counts. They are whole numbers and sums, changed on the event loop's thread alone; no text that a
caller wrote is ever a key in them. It knows neither gRPC nor the names of metrics.

A token costs a comparison and an addition: those of one step came at one moment, so all whose streams had one of the
step before are the same time apart, and count together.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from pagewire.scheduler_svc.frontend import errors
from pagewire.scheduler_svc.frontend.errors import InternalError, RequestError, ResourceExhausted, Unavailable
from pagewire.scheduler_svc.frontend.streams.stream import RequestStream
from pagewire.v1 import generation_pb2 as pb
from pagewire.wire.measures import FrontendCounts, FrontendMeasured, TenantUse, tenant_within

_REASONS = {
    errors.InvalidArgument: "invalid_argument",
    errors.NotFound: "not_found",
    errors.DeadlineExceeded: "deadline_exceeded",
    errors.Unauthenticated: "unauthenticated",
    errors.PermissionDenied: "permission_denied",
    errors.OutOfRange: "out_of_range",
    errors.KvEventsLost: "kv_events_lost",
    errors.Unimplemented: "unimplemented",
    errors.ModelFailed: "model_failed",
    InternalError: "internal",
}
_ENDS = {
    pb.FINISH_REASON_EOS: "eos",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_STOP_STRING: "stop_string",
    pb.FINISH_REASON_STOP_TOKEN: "stop_token",
    pb.FINISH_REASON_ABORTED: "aborted",
}


def reason_of(error: RequestError | InternalError) -> str:
    """An error's name among the reasons of refusals."""
    if isinstance(error, Unavailable):
        return error.reason.value.lower()
    if isinstance(error, ResourceExhausted):
        return error.kind.value
    return _REASONS[type(error)]


class CallMeasure:
    """One call that generates."""

    def __init__(self, arrived_s: float) -> None:
        self._arrived_s = arrived_s
        self.stream: RequestStream | None = None

    def opened(self, stream: RequestStream) -> RequestStream:
        """It has sequences in the engine now; returns its stream."""
        stream.arrived_s = self._arrived_s
        self.stream = stream
        return stream


class FrontendMeasures:
    """Of one frontend process, since it started."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._clock = clock
        self._counts = FrontendCounts()
        self._open_requests = 0

    def report(self) -> FrontendMeasured:
        """Everything until now."""
        return FrontendMeasured(self._counts, self._open_requests)

    # Calls

    @contextlib.contextmanager
    def call(self, tenant: str) -> Iterator[CallMeasure]:
        """A call that generates, from its arrival to its end, while the block runs. `tenant` is empty where there are
        none."""
        arrived_s = self._clock()
        measure = CallMeasure(arrived_s)
        self._open_requests += 1
        outcome = "failed"
        try:
            yield measure
            outcome = "completed"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except RequestError as error:
            if isinstance(error, ResourceExhausted) and error.kind is errors.Exhausted.READER:
                outcome = "cancelled"  # whoever does not read has left, as far as anybody can tell
            elif measure.stream is None or not measure.stream.has_started:
                outcome = "refused"
            raise
        finally:
            self._open_requests -= 1
            self._counts.requests[outcome] += 1
            name = tenant_within(self._counts.tenants, tenant)
            use = self._counts.tenants.setdefault(name, TenantUse())
            use.requests += 1
            if measure.stream is not None:
                self._ended(use, measure.stream, self._clock() - arrived_s)

    def refused(self, error: RequestError | InternalError) -> None:
        """A call of any method ends with this error."""
        self._counts.refusals[reason_of(error)] += 1

    def _ended(self, tenant: TenantUse, stream: RequestStream, request_s: float) -> None:
        counts, use = self._counts, stream.use
        for output in stream.outputs:
            if output.reason in _ENDS:
                counts.outputs[_ENDS[output.reason]] += 1
        if not stream.has_started:
            return
        if use.started_s is not None:  # an operator ends some that never ran
            tenant.prompt_tokens += use.prompt_tokens
            counts.queue.observe(use.queue_s)
            if use.first_token_s is not None:
                counts.prefill.observe(use.prefill_s)
        if use.first_token_s is not None:
            counts.decode.observe(use.decode_s)
        tenant.cached_tokens += use.cached_tokens
        tenant.output_tokens += use.output_tokens
        counts.request.observe(request_s)
        counts.prompt_tokens.observe(use.prompt_tokens)
        counts.output_tokens.observe(use.output_tokens)
        counts.outputs_asked.observe(len(stream.outputs))
        counts.max_tokens.observe(stream.outputs[0].submit.max_tokens)

    # Tokens

    def tokens(self, gap_s: float, num_tokens: int) -> None:
        """So many tokens came each `gap_s` after the one before it of its output."""
        self._counts.inter_token.observe(gap_s, num_tokens)

    def token(self, stream: RequestStream, last_s: float | None, now_s: float) -> None:
        """A token came whose output had its last one at `last_s`, or none yet."""
        if last_s is not None:
            self._counts.inter_token.observe(now_s - last_s)
        elif not stream.is_first_token_counted:
            # Its text may be held back, and that of other outputs come before it: once counts.
            stream.is_first_token_counted = True
            self._counts.time_to_first_token.observe(now_s - stream.arrived_s)


@contextlib.contextmanager
def call_of(measures: FrontendMeasures | None, tenant: str) -> Iterator[CallMeasure]:
    """The same where nobody may be counting."""
    if measures is None:
        yield CallMeasure(0.0)
        return
    with measures.call(tenant) as measure:
        yield measure
