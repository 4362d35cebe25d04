"""The example clients of other languages, each as its README starts it: against real models, and a scripted service."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from support.examples import COMMANDS, ENVIRONMENT, build
from support.scripted_service import Responses, ScriptedService, status, unavailable
from support.service import Service, serve
from support.thinking_model import save_thinking_model

from pagewire.client import Chat, Client, Message
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2

LIMIT_S = 60

Event = dict[str, Any]
Run = Callable[[str, str], list[Event]]


@pytest.fixture(scope="module", params=COMMANDS)
def run(request: pytest.FixtureRequest) -> Run:
    """Run one command of one language's client against an address; its events."""
    folder = build(request.param)

    def run_command(address: str, command: str) -> list[Event]:
        ended = subprocess.run(
            [*COMMANDS[request.param], address, command],
            cwd=folder,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        print(ended.stdout, ended.stderr)
        assert ended.returncode == 0, ended.stderr
        return [json.loads(line) for line in ended.stdout.split("\n") if line]

    return run_command


@pytest.fixture(scope="module")
def smollm2() -> Iterator[Service]:
    with serve(model="smollm2-135m", device="cpu", max_model_len=2048, max_num_seqs=8) as service:
        yield service


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("thinking")
    save_thinking_model(directory)
    with serve(model=str(directory), device="cpu", dtype="float32", max_model_len=400, max_num_seqs=8) as service:
        yield service


def joined(events: list[Event], kind: str) -> str:
    """The text of all events of a kind."""
    return "".join(event["text"] for event in events if event["event"] == kind)


def kinds(events: list[Event]) -> list[str]:
    """In order, each run of the same kind once."""
    found = [event["event"] for event in events]
    return [kind for index, kind in enumerate(found) if index == 0 or found[index - 1] != kind]


def idle(service: Service) -> None:
    """Wait until nothing of a call is left in the service."""
    service.wait_for_load(lambda load: load.running_sequences == 0 and load.used_blocks == 0)


@pytest.mark.slow
@pytest.mark.model
def test_a_chat_streams(run: Run, smollm2: Service) -> None:
    with Client(smollm2.address) as client:
        whole = client.chat([Message("user", "Why is the sky blue?")], temperature=0, max_tokens=24)
    events = run(smollm2.address, "stream")
    assert kinds(events) == ["started", "content", "finished", "usage"]
    assert joined(events, "content") == whole.text
    assert len(events) > 10, "the answer came at once"
    assert events[0]["prompt_tokens"] == whole.usage.prompt_tokens
    assert events[-2:] == [
        {"event": "finished", "reason": "FINISH_REASON_LENGTH"},
        {"event": "usage", "completion_tokens": 24},
    ]


@pytest.mark.slow
@pytest.mark.model
def test_a_cancelled_stream_leaves_nothing_behind(run: Run, smollm2: Service) -> None:
    before = smollm2.load().output_tokens
    events = run(smollm2.address, "cancel")
    assert events[-1]["event"] == "error"
    assert events[-1]["code"] == "CANCELLED"
    assert kinds(events) == ["started", "content", "error"]
    idle(smollm2)
    assert smollm2.load().output_tokens - before < 1000


@pytest.mark.slow
@pytest.mark.model
def test_a_deadline_ends_a_stream(run: Run, smollm2: Service) -> None:
    events = run(smollm2.address, "deadline")
    assert events[-1]["event"] == "error"
    assert events[-1]["code"] == "DEADLINE_EXCEEDED"
    idle(smollm2)


@pytest.mark.slow
@pytest.mark.model
def test_a_refusal_names_the_field(run: Run, smollm2: Service) -> None:
    (event,) = run(smollm2.address, "errors")
    assert (event["event"], event["code"]) == ("error", "INVALID_ARGUMENT")
    (violation,) = event["violations"]
    assert violation["field"] == "generation.sampling.temperature"
    assert "100" in violation["description"]
    assert "1000" in event["message"]


@pytest.mark.slow
@pytest.mark.model
def test_a_tool_is_called(run: Run, smollm2: Service) -> None:
    events = run(smollm2.address, "tools")
    assert kinds(events) == ["started", "tool_call", "call", "finished", "usage"]
    pieces = [event for event in events if event["event"] == "tool_call"]
    (call,) = [event for event in events if event["event"] == "call"]
    assert call["name"] == "get_weather"
    assert len(call["id"]) == 9
    assert len(pieces) > 2
    assert {piece["index"] for piece in pieces} == {0}
    assert "".join(piece["arguments"] for piece in pieces) == call["arguments"]
    assert set(json.loads(call["arguments"])) == {"city"}


@pytest.mark.slow
def test_reasoning_is_apart_from_content(run: Run, thinking: Service) -> None:
    with Client(thinking.address) as client:
        chat = Chat([Message("user", "Why?")], template_arguments={"enable_thinking": True}, max_reasoning_tokens=12)
        whole = client.generate(chat, temperature=0, max_tokens=24)
    events = run(thinking.address, "reasoning")
    assert kinds(events) == ["started", "reasoning", "content", "finished", "usage"]
    assert joined(events, "reasoning") == whole.message.reasoning_content
    assert joined(events, "content") == whole.message.content


def test_unavailable_is_tried_again_by_the_service_config(run: Run, service: ScriptedService) -> None:
    service.failures = [unavailable("LOADING"), unavailable("DRAINING")]
    assert run(service.address, "retry") == [{"event": "answer", "text": "Hello, wörld €"}]
    assert len(service.requests(inference_pb2.GenerateRequest)) == 3
    assert [each.get("grpc-previous-rpc-attempts") for each in service.metadata] == [None, "1", "2"]


def test_other_failures_come_at_once_with_their_reason(run: Run, service: ScriptedService) -> None:
    info = error_details_pb2.ErrorInfo(reason="SOMETHING", domain="pagewire")
    service.failures = [status(grpc.StatusCode.RESOURCE_EXHAUSTED, "zu viel", info)]
    said = {"code": "RESOURCE_EXHAUSTED", "message": "zu viel", "reason": "SOMETHING", "domain": "pagewire"}
    assert run(service.address, "retry") == [{"event": "error", **said}]
    assert len(service.requests(inference_pb2.GenerateRequest)) == 1


def test_every_kind_of_part(run: Run, service: ScriptedService) -> None:
    def script(_request: inference_pb2.StreamGenerateRequest, _context: grpc.ServicerContext) -> Responses:
        first = pb.ToolCallPart(index=0, id="call00000", name="f", arguments='{"a": "')
        last = pb.ToolCallPart(index=0, arguments='ö\n"}', is_complete=True)
        malformed = pb.MalformedCall(text="<bad>", reason="no name", index=1)
        delta = pb.Delta(
            parts=[
                pb.Part(reasoning="Hm\t"),
                pb.Part(content='"So" \\ \u2028'),
                pb.Part(tool_call=first),
                pb.Part(tool_call=pb.ToolCallPart(index=1, id="call00001", name="g")),
                pb.Part(tool_call=last),
                pb.Part(malformed_call=malformed),
            ]
        )
        yield inference_pb2.StreamGenerateResponse(started=pb.Started(prompt_tokens=3))
        yield inference_pb2.StreamGenerateResponse(delta=delta)
        yield inference_pb2.StreamGenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_STOP_STRING))
        yield inference_pb2.StreamGenerateResponse(usage=pb.Usage(completion_tokens=4))

    service.streams = [script]
    assert run(service.address, "stream") == [
        {"event": "started", "prompt_tokens": 3},
        {"event": "reasoning", "text": "Hm\t"},
        {"event": "content", "text": '"So" \\ \u2028'},
        {"event": "tool_call", "index": 0, "arguments": '{"a": "'},
        {"event": "tool_call", "index": 1, "arguments": ""},
        {"event": "tool_call", "index": 0, "arguments": 'ö\n"}'},
        {"event": "call", "id": "call00000", "name": "f", "arguments": '{"a": "ö\n"}'},
        {"event": "malformed_call", "text": "<bad>", "reason": "no name"},
        {"event": "finished", "reason": "FINISH_REASON_STOP_STRING"},
        {"event": "usage", "completion_tokens": 4},
    ]
