"""Traces as a real collector gets them: a request's span under its caller's, with its parts."""

import logging
import socket
import subprocess
import sys
import time

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from support.frontend_world import FrontendUnderTest, failure, ids_request, running_frontend, unary
from support.otlp_collector import attributes_of, collecting

from pagewire.scheduler_svc.frontend.rpc.request_records import RequestRecord
from pagewire.scheduler_svc.frontend.rpc.tracing import phases
from pagewire.v1 import generation_pb2, inference_pb2
from pagewire.wire.requests import FinishKind, RejectKind, Submit

TRACE_ID, CALLERS_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{CALLERS_SPAN}-01"
KEY = "a-key-of-enough-letters"
SECRET = "the words of a prompt"


def test_no_part_ends_before_it_begins() -> None:
    record = RequestRecord(
        request_id="r-1",
        is_chat=False,
        is_streamed=True,
        tenant="",
        priority=0,
        metadata=(),
        code="OK",
        reason="",
        finish_reasons=(),
        prompt_tokens=3,
        cached_tokens=0,
        output_tokens=1,
        arrived_s=1.0,
        submitted_s=1.0,
        started_s=3.0,  # as the engine said, whose clock may be a little ahead
        first_token_s=2.0,
        last_token_s=2.5,
        ended_s=2.5,
    )
    assert list(phases(record)) == [("queue", 1.0, 3.0), ("prefill", 3.0, 3.0), ("decode", 2.0, 2.5)]


async def answer(world: FrontendUnderTest, *metadata: tuple[str, str]) -> None:
    """One call and its whole answer."""
    call = world.inference.Generate(unary(ids_request()), metadata=metadata)
    await world.engine.answer((await world.engine.act(Submit)).handle, [5, 6])
    await call


def test_a_request_is_a_trace_under_its_callers_span(spec, run, tmp_path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"ann:{KEY}\n")
    prompt = generation_pb2.Prompt(text=SECRET)
    request = inference_pb2.StreamGenerateRequest(
        generation=generation_pb2.Generation(prompt=prompt, request_id="r-1", priority=2)
    )

    async def test() -> None:
        began_ns = time.time_ns()
        with collecting() as collector:
            async with running_frontend(spec, otlp_endpoint=collector.endpoint, api_keys_file=str(keys)) as world:
                stream = world.inference.StreamGenerate(
                    request, metadata=[("traceparent", TRACEPARENT), ("authorization", f"Bearer {KEY}")]
                )
                handle = (await world.engine.act(Submit)).handle
                await world.engine.start(handle, cached_tokens=1, queue_s=0.0)
                await world.engine.step([(handle, 5)])
                await world.engine.step([(handle, 6)], [(handle, FinishKind.EOS)])
                assert [message.WhichOneof("event") async for message in stream][-1] == "usage"
            *parts, whole = sorted(collector.spans, key=lambda span: span.kind == Span.SPAN_KIND_SERVER)
        assert {span.trace_id.hex() for span in collector.spans} == {TRACE_ID}
        assert (whole.parent_span_id.hex(), whole.kind) == (CALLERS_SPAN, Span.SPAN_KIND_SERVER)
        assert whole.name == f"text_completion {spec.name}"
        assert whole.status.code == Status.STATUS_CODE_UNSET
        assert [part.name for part in sorted(parts, key=lambda part: part.start_time_unix_nano)] == [
            "queue",
            "prefill",
            "decode",
        ]
        assert {part.parent_span_id for part in parts} == {whole.span_id}
        queue, prefill, decode = parts
        assert began_ns <= whole.start_time_unix_nano <= queue.start_time_unix_nano
        assert queue.end_time_unix_nano == prefill.start_time_unix_nano
        assert prefill.end_time_unix_nano == decode.start_time_unix_nano
        assert decode.end_time_unix_nano <= whole.end_time_unix_nano <= time.time_ns()
        said = attributes_of(whole)
        assert said.pop("gen_ai.usage.input_tokens") > 0
        assert said.pop("gen_ai.response.time_to_first_chunk") > 0
        assert said == {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.provider.name": "pagewire",
            "gen_ai.request.model": spec.name,
            "gen_ai.request.stream": True,
            "gen_ai.response.id": "r-1",
            "gen_ai.response.finish_reasons": ["eos"],
            "gen_ai.usage.cache_read.input_tokens": 1,
            "gen_ai.usage.output_tokens": 2,
            "pagewire.priority": 2,
            "pagewire.tenant": "ann",
            "rpc.response.status_code": "OK",
            "rpc.system.name": "grpc",
        }
        assert collector.resource["service.name"] == "pagewire"
        sent = b"".join(each.SerializeToString() for each in collector.requests)
        assert SECRET.encode() not in sent
        assert KEY.encode() not in sent

    run(test())


@pytest.mark.parametrize(
    "metadata",
    [
        [("traceparent", "")],
        [("traceparent", TRACEPARENT.upper())],
        [("traceparent", TRACEPARENT[:-1])],
        [("traceparent", TRACEPARENT + "-more")],
        [("traceparent", f"ff-{TRACE_ID}-{CALLERS_SPAN}-01")],
        [("traceparent", f"00-{'0' * 32}-{CALLERS_SPAN}-01")],
        [("traceparent", f"00-{TRACE_ID}-{'0' * 16}-01")],
        [("traceparent", f"01-{TRACE_ID}-{CALLERS_SPAN}-01-{'a' * 4000}")],
        [("tracestate", "vendor=1")],
    ],
)
def test_a_wrong_context_is_as_none(spec, run, metadata) -> None:
    async def test() -> None:
        with collecting() as collector:
            async with running_frontend(spec, otlp_endpoint=collector.endpoint) as world:
                await answer(world, *metadata)
            (whole,) = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
        assert whole.parent_span_id == b""
        assert whole.trace_id.hex() != TRACE_ID
        assert whole.trace_state == ""

    run(test())


def test_what_the_caller_does_not_sample_is_not_sent(spec, run) -> None:
    async def test() -> None:
        with collecting() as collector:
            async with running_frontend(spec, otlp_endpoint=collector.endpoint) as world:
                await answer(world, ("traceparent", f"00-{TRACE_ID}-{CALLERS_SPAN}-00"))
                await answer(world, ("traceparent", TRACEPARENT), ("tracestate", "vendor=1"))
        assert len(collector.spans) == 4
        assert {span.trace_state for span in collector.spans} == {"vendor=1"}

    run(test())


def test_the_standard_variables_hold(spec, run, monkeypatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "another")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "tenant=us")

    async def test() -> None:
        with collecting() as collector:
            async with running_frontend(spec, otlp_endpoint=collector.endpoint) as world:
                await answer(world)
        assert collector.resource["service.name"] == "another"
        assert collector.metadata[0]["tenant"] == "us"

    run(test())


def test_a_call_that_fails_says_why_and_how_far_it_came(spec, run) -> None:
    async def test() -> None:
        with collecting() as collector:
            async with running_frontend(spec, otlp_endpoint=collector.endpoint) as world:
                await failure(world.inference.Generate(unary(ids_request(n=10_000))))
                full = world.inference.Generate(unary(ids_request()))
                await world.engine.reject((await world.engine.act(Submit)).handle, RejectKind.QUEUE_FULL)
                await failure(full)
                broken = world.inference.StreamGenerate(ids_request())
                handle = (await world.engine.act(Submit)).handle
                await world.engine.start(handle)
                await world.engine.step([], [(handle, FinishKind.FAILED)])
                await failure(broken)
            ended = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
        told = [(attributes_of(span)["rpc.response.status_code"], span.status.code) for span in ended]
        assert told == [
            ("INVALID_ARGUMENT", Status.STATUS_CODE_UNSET),
            ("RESOURCE_EXHAUSTED", Status.STATUS_CODE_UNSET),
            ("INTERNAL", Status.STATUS_CODE_ERROR),
        ]
        assert attributes_of(ended[0])["error.type"] == "generation.n"
        parts = [[part.name for part in collector.spans if part.parent_span_id == span.span_id] for span in ended]
        assert parts == [[], ["queue"], ["queue", "prefill"]]

    run(test())


def test_a_collector_that_is_away_costs_a_line(spec, run, caplog) -> None:
    async def test() -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
            async with running_frontend(spec, otlp_endpoint=endpoint) as world:
                for _ in range(20):
                    await answer(world)

    with caplog.at_level(logging.WARNING):
        run(test())
    assert len([record for record in caplog.records if record.name.startswith("opentelemetry")]) <= 2


def test_a_frontend_without_traces_does_not_import_the_sdk() -> None:
    code = "import sys, pagewire.scheduler_svc.frontend.__main__; print([n for n in sys.modules if 'telemetry' in n])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.strip() == "[]"
