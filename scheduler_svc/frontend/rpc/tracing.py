"""Tracing: a span for each call that generates, under its caller's, and in it what the engine did when.

Spans are made when a call has ended, of its record, so that nothing is done for them while tokens come; a thread of
OpenTelemetry's SDK sends them in batches and drops them where the collector is away. The call's span has the names of
the GenAI semantic conventions; `queue`, `prefill` and `decode` are its children. Whose child it is comes from the
metadata `traceparent`, in W3C's form; what is malformed or too long is taken as absent, as that specification wants,
and of several gRPC hands out the last.

What the standard variables OTEL_* say of headers, certificates, compression, sampling, the resource and batches holds.
The SDK is an extra of its own, and is imported with this module.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any, NamedTuple

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from pagewire.scheduler_svc.frontend.rpc.request_records import Metadata, RequestRecord
from pagewire.scheduler_svc.limited_log import LimitedRecords

_CLOSE_S = 2.0
"""What the end of a frontend waits for the collector."""
_TRACE_CONTEXT = ("traceparent", "tracestate")
_SERVERS_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""What the conventions for RPC count as a server's."""
_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.trace.propagation.tracecontext",
    "opentelemetry.trace.span",
    "opentelemetry.attributes",
)


class Phase(NamedTuple):
    """A part of a request's time, in seconds on its record's clock."""

    name: str
    since_s: float
    until_s: float


class RequestTraces:
    """Makes spans of records and sends them. A `RequestRecords` observer."""

    def __init__(self, endpoint: str, model: str, wall_clock: Callable[[], float] = time.time) -> None:
        """`endpoint` is the collector's URL, OTLP over gRPC. Raises ValueError for a variable OTEL_* that is wrong."""
        for name in _LOGGERS:
            # A collector that is away would be told of with every batch, and callers' malformed context with each call.
            logging.getLogger(name).addFilter(LimitedRecords())
        self._model = model
        self._wall_clock = wall_clock
        # Its spans are for code that runs while they last, and cost ten times as much as these.
        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._resource, self._sampler, self._ids = provider.resource, provider.sampler, provider.id_generator
        self._scope = InstrumentationScope("pagewire", version("pagewire"))
        self._sender = BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint))
        self._propagator = TraceContextTextMapPropagator()

    def observe(self, record: RequestRecord) -> None:
        """The spans of one call."""
        caller = self._caller(record.metadata)
        parent = get_current_span(caller).get_span_context()
        trace_id = parent.trace_id if parent.is_valid else self._ids.generate_trace_id()
        name, attributes = f"{_operation(record)} {self._model}", dict(self._attributes(record))
        sampled = self._sampler.should_sample(caller, trace_id, name, SpanKind.SERVER, attributes)
        if sampled.decision is not Decision.RECORD_AND_SAMPLE:
            return
        attributes.update(sampled.attributes)
        began_ns = round((self._wall_clock() - record.ended_s) * 1e9)

        def send(phase: Phase, parent: SpanContext | None, **more: Any) -> SpanContext:
            context = SpanContext(
                trace_id,
                self._ids.generate_span_id(),
                is_remote=False,
                trace_flags=TraceFlags(TraceFlags.SAMPLED),
                trace_state=sampled.trace_state,
            )
            span = ReadableSpan(
                phase.name,
                context,
                parent,
                self._resource,
                instrumentation_scope=self._scope,
                start_time=began_ns + round(phase.since_s * 1e9),
                end_time=began_ns + round(phase.until_s * 1e9),
                **more,
            )
            self._sender.on_end(span)
            return context

        status = Status(StatusCode.ERROR if record.code in _SERVERS_ERRORS else StatusCode.UNSET)
        whole = Phase(name, record.arrived_s, record.ended_s)
        inside = send(
            whole, parent if parent.is_valid else None, attributes=attributes, kind=SpanKind.SERVER, status=status
        )
        for phase in phases(record):
            send(phase, inside)

    def _caller(self, metadata: Metadata) -> Context:
        carrier: dict[str, list[str]] = {}
        for name, value in metadata:
            if name in _TRACE_CONTEXT and isinstance(value, str):
                carrier.setdefault(name, []).append(value)
        return self._propagator.extract(carrier, Context()) if carrier else Context()

    def _attributes(self, record: RequestRecord) -> Iterator[tuple[str, AttributeValue]]:
        yield "gen_ai.operation.name", _operation(record)
        yield "gen_ai.provider.name", "pagewire"
        yield "gen_ai.request.model", self._model
        yield "gen_ai.request.stream", record.is_streamed
        yield "rpc.system.name", "grpc"
        yield "rpc.response.status_code", record.code
        yield "pagewire.priority", record.priority
        if record.tenant:
            yield "pagewire.tenant", record.tenant
        if record.request_id:
            yield "gen_ai.response.id", record.request_id
        if record.submitted_s is not None:
            yield "gen_ai.usage.input_tokens", record.prompt_tokens
            yield "gen_ai.usage.cache_read.input_tokens", record.cached_tokens
            yield "gen_ai.usage.output_tokens", record.output_tokens
        if record.first_token_s is not None:
            yield "gen_ai.response.time_to_first_chunk", record.first_token_s - record.arrived_s
        if record.finish_reasons:
            yield "gen_ai.response.finish_reasons", [reason.lower() for reason in record.finish_reasons]
        if record.code != "OK":
            yield "error.type", record.reason or record.code

    def close(self) -> None:
        """Send what waits, as far as the collector takes it at once."""
        closing = threading.Thread(target=self._sender.shutdown, name="tracing-end", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)


def phases(record: RequestRecord) -> Iterator[Phase]:
    """What a request came to, in order; the last one of a request that was cut short lasts until then."""
    ended_s = record.ended_s
    if record.submitted_s is None:
        return
    yield _phase("queue", record.submitted_s, ended_s if record.started_s is None else record.started_s)
    if record.started_s is not None:
        yield _phase("prefill", record.started_s, ended_s if record.first_token_s is None else record.first_token_s)
    if record.first_token_s is not None and record.last_token_s is not None:
        yield _phase("decode", record.first_token_s, record.last_token_s)


def _phase(name: str, since_s: float, until_s: float) -> Phase:
    """When it started is of the engine's clock, the rest of the frontend's: none ends before it begins."""
    return Phase(name, since_s, max(since_s, until_s))


def _operation(record: RequestRecord) -> str:
    return "chat" if record.is_chat else "text_completion"


def _resource() -> Resource:
    """As OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say, where they do."""
    ours = Resource({SERVICE_NAME: "pagewire", SERVICE_VERSION: version("pagewire")})
    found = Resource.create()
    if str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return found.merge(ours)
    return ours.merge(found)
