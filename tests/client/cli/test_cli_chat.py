"""`pagewire chat`, and tools on the command line, in this process through `main`, against a scripted service."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import grpc
import pytest
from support.scripted_service import EOS, Responses, ScriptedService, Stream, status

from pagewire.client.__main__ import main
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2

ANSWER = "Hello, wörld €"

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def target(service: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGEWIRE_TARGET", service.address)
    monkeypatch.delenv("PAGEWIRE_API_KEY", raising=False)


def piped(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_chat_from_a_pipe(service: ScriptedService, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    piped(monkeypatch, "one\n\ntwo\n/reset\nthree\n/exit\nfour\n")
    assert main(["chat", "--system", "brief", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == f"{ANSWER}\n" * 3
    conversations = [
        [message.content for message in request.generation.prompt.chat.messages]
        for request in service.requests(inference_pb2.StreamGenerateRequest)
    ]
    assert conversations == [["brief", "one"], ["brief", "one", ANSWER, "two"], ["brief", "three"]]


def test_chat_goes_on_after_a_failed_answer(
    service: ScriptedService, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "one\ntwo\n")
    service.streams = [
        lambda _request, context: context.abort_with_status(status(grpc.StatusCode.INVALID_ARGUMENT, "no"))
    ]
    assert main(["chat"]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == (f"{ANSWER}\n", "pagewire: no\n")
    requests = service.requests(inference_pb2.StreamGenerateRequest)
    assert [message.content for message in requests[1].generation.prompt.chat.messages] == ["two"]


def conversations(service: ScriptedService) -> list[list[str]]:
    return [
        [message.content for message in request.generation.prompt.chat.messages]
        for request in service.requests(inference_pb2.StreamGenerateRequest)
    ]


def answers(text: str) -> Stream:
    """A stream of this text, which may be empty."""

    def script(_request: inference_pb2.StreamGenerateRequest, _context: grpc.ServicerContext) -> Responses:
        yield inference_pb2.StreamGenerateResponse(started=pb.Started(request_id="x", seed=1, prompt_tokens=3))
        if text:
            tokens = [pb.Token(id=byte, text=bytes([byte])) for byte in text.encode()]
            parts = [pb.Part(content=text)]
            yield inference_pb2.StreamGenerateResponse(delta=pb.Delta(tokens=tokens, parts=parts))
        end = pb.Finished(reason=pb.FINISH_REASON_EOS, stop_token_id=EOS)
        yield inference_pb2.StreamGenerateResponse(finished=end)
        yield inference_pb2.StreamGenerateResponse(usage=pb.Usage(prompt_tokens=3))

    return script


def breaks_after(text: str) -> Stream:
    """A stream of this text that then fails for good."""

    def script(request: inference_pb2.StreamGenerateRequest, context: grpc.ServicerContext) -> Responses:
        yield from list(answers(text)(request, context))[:-2]
        context.abort_with_status(status(grpc.StatusCode.INTERNAL, "broken"))

    return script


def refuses(_request: inference_pb2.StreamGenerateRequest, context: grpc.ServicerContext) -> Responses:
    context.abort_with_status(status(grpc.StatusCode.INVALID_ARGUMENT, "too long"))
    yield from ()


def says(*parts: pb.Part) -> Stream:
    """A stream of these parts, whose text nobody looks at."""

    def script(_request: inference_pb2.StreamGenerateRequest, _context: grpc.ServicerContext) -> Responses:
        yield inference_pb2.StreamGenerateResponse(started=pb.Started(request_id="x", seed=1, prompt_tokens=3))
        for part in parts:
            delta = pb.Delta(tokens=[pb.Token(id=1, text=b"?")], parts=[part])
            yield inference_pb2.StreamGenerateResponse(delta=delta)
        end = pb.Finished(reason=pb.FINISH_REASON_EOS, stop_token_id=EOS)
        yield inference_pb2.StreamGenerateResponse(finished=end)
        yield inference_pb2.StreamGenerateResponse(usage=pb.Usage(prompt_tokens=3))

    return script


def calls(name: str, arguments: str) -> list[pb.Part]:
    begun = pb.ToolCallPart(index=0, id="abcdefghi", name=name, arguments=arguments[:3])
    return [
        pb.Part(tool_call=begun),
        pb.Part(tool_call=pb.ToolCallPart(index=0, arguments=arguments[3:], is_complete=True)),
    ]


ECHO = f"echo={sys.executable} -c 'import sys; print(sys.stdin.read().upper())'"


def test_a_command_answers_the_calls_of_its_tool(
    service: ScriptedService, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "one\ntwo\n")
    service.streams = [
        says(pb.Part(reasoning="Hm"), *calls("echo", '{"a": "b"}')),
        says(pb.Part(reasoning="So"), pb.Part(content="done")),
    ]
    assert main(["chat", "--tool", ECHO, "--max-reasoning-tokens", "9", "--tool-call-format", "qwen3"]) == 0
    assert capsys.readouterr() == (f'echo {{"a": "b"}}\ndone\n{ANSWER}\n', "")
    asked = [each.generation.prompt.chat for each in service.requests(inference_pb2.StreamGenerateRequest)]
    assert [(each.name, each.parameters) for each in asked[0].tools] == [("echo", '{"type": "object"}')]
    assert asked[0].max_reasoning_tokens == 9
    assert asked[0].format.tool_calls == pb.TOOL_CALL_FORMAT_QWEN3
    call, answer = asked[1].messages[1:]
    assert (call.reasoning_content, call.HasField("content")) == ("Hm", False)
    assert (call.tool_calls[0].id, call.tool_calls[0].arguments) == ("abcdefghi", '{"a": "b"}')
    assert (answer.role, answer.content, answer.tool_call_id) == (pb.CHAT_ROLE_TOOL, '{"A": "B"}', "abcdefghi")
    assert [message.content for message in asked[2].messages] == ["one", "", '{"A": "B"}', "done", "two"]
    assert asked[2].messages[3].reasoning_content == "So"


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (f"f={sys.executable} -c 'import sys; sys.exit(\"no\")'", "error: exit status 1\nno"),
        (f"f={sys.executable} -c 'while True: print(1234567)'", ("1234567\n" * 12_500).strip()),
        (f"f={sys.executable} -c 'import os; os.close(0); print(5)'", "5"),
        ("f=sh -c 'head -c 300000 /dev/zero >&2; echo 6'", "6"),
        ("f=/nonexistent/tool", "error: [Errno 2] No such file or directory: '/nonexistent/tool'"),
    ],
)
def test_a_command_that_fails_is_an_answer_too(
    service: ScriptedService, capsys: Captured, monkeypatch: pytest.MonkeyPatch, command: str, answer: str
) -> None:
    piped(monkeypatch, "one\n")
    service.streams = [says(*calls("f", "{}"))]
    assert main(["chat", "--tool", command, "--tool-choice", "f"]) == 0
    first, second = (each.generation.prompt.chat for each in service.requests(inference_pb2.StreamGenerateRequest))
    assert second.messages[2].content == answer
    is_failure = answer.startswith("error: ")
    assert capsys.readouterr().err == (f"pagewire: f: {' '.join(answer.split())}\n" if is_failure else "")
    # Once it is answered, a call need not be made again.
    assert (first.tool_choice.named, second.HasField("tool_choice")) == ("f", False)


def test_a_call_that_no_command_answers_is_shown(
    service: ScriptedService, capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps({"type": "function", "function": {"name": "f", "parameters": {"a": 1}}}))
    piped(monkeypatch, "one\n")
    malformed = pb.Part(malformed_call=pb.MalformedCall(text="<tool_call>\x07x", reason="it is \x1b[31mno JSON object"))
    service.streams = [says(pb.Part(content="Look:"), *calls("f", '{"a": 2}'), malformed)]
    assert main(["chat", "--tools", str(file), "--tool-choice", "f", "--single-tool-call"]) == 0
    out, err = capsys.readouterr()
    assert out == 'Look:\nf {"a": 2}\n\n'
    assert err == "pagewire: a call is malformed, it is [31mno JSON object: <tool_call>x\n"
    (request,) = service.requests(inference_pb2.StreamGenerateRequest)
    chat = request.generation.prompt.chat
    assert chat.tools[0].parameters == '{"a": 1}'
    assert (chat.tool_choice.named, chat.parallel_tool_calls) == ("f", False)


def test_generate_prints_calls_and_has_them_in_its_json(service: ScriptedService, capsys: Captured) -> None:
    service.streams = [says(pb.Part(reasoning="Hm"), pb.Part(content="So"), *calls("f", '{"a": 2}'))] * 3
    assert main(["generate", "hi"]) == 0
    assert capsys.readouterr().out == 'So\nf {"a": 2}\n'
    assert main(["generate", "--n", "1", "--json", "hi"]) == 0
    assert json.loads(capsys.readouterr().out)["message"] == {
        "role": "assistant",
        "content": "So",
        "reasoning_content": "Hm",
        "tool_calls": [{"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": '{"a": 2}'}}],
    }


def test_a_tool_has_as_long_as_an_answer(service: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> None:
    piped(monkeypatch, "one\n")
    service.streams = [says(*calls("f", "{}"))]
    waits = "f=sh -c 'sleep 100; echo 5'"  # which waits in a process of its own
    assert main(["chat", "--tool", waits, "--timeout", "1"]) == 0
    second = service.requests(inference_pb2.StreamGenerateRequest)[1].generation.prompt.chat
    assert second.messages[2].content == "error: it took more than 1 s"


def test_behind_the_last_round_of_calls_the_model_must_answer(
    service: ScriptedService, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "one\n")
    service.streams = [*[says(*calls("echo", "{}"), *calls_of(1))] * 16, says(pb.Part(content="done"))]
    assert main(["chat", "--tool", ECHO, "--tool-choice", "required"]) == 0
    choices = [
        request.generation.prompt.chat.tool_choice.WhichOneof("kind")
        for request in service.requests(inference_pb2.StreamGenerateRequest)
    ]
    assert choices == ["required", *[None] * 15, "none"]
    assert capsys.readouterr().out.endswith("\ndone\n")


def calls_of(index: int) -> list[pb.Part]:
    """One more call of an answer."""
    first = pb.ToolCallPart(index=index, id=f"abcdefgh{index}", name="echo", arguments="{}", is_complete=True)
    return [pb.Part(tool_call=first)]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--tools", "/nonexistent"], "--tools '/nonexistent' cannot be read"),
        (["--tool-choice", "f", "--raw"], "--tool-choice cannot be used"),
    ],
)
def test_flags_of_chats_that_cannot_be(
    service: ScriptedService, capsys: Captured, flags: list[str], problem: str
) -> None:
    assert main(["generate", *flags, "hi"]) == 1
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("command", ["f", "=date", "f=", "f='"])
def test_a_tool_s_command_that_cannot_be_read(capsys: Captured, command: str) -> None:
    with pytest.raises(SystemExit):
        main(["chat", "--tool", command])
    assert "--tool" in capsys.readouterr().err


@pytest.mark.parametrize("empty", ["", "\n"])
def test_a_question_without_an_answer_is_no_part_of_the_conversation(
    service: ScriptedService, capsys: Captured, monkeypatch: pytest.MonkeyPatch, empty: str
) -> None:
    piped(monkeypatch, "one\ntwo\nthree\n")
    service.streams = [answers(empty), answers("yes")]
    assert main(["chat", "--system", "brief"]) == 0
    assert capsys.readouterr().err == ""
    assert conversations(service) == [["brief", "one"], ["brief", "two"], ["brief", "two", "yes", "three"]]


def test_chat_goes_on_after_an_answer_that_broke(
    service: ScriptedService, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "one\ntwo\nthree\n")
    service.streams = [answers("1"), breaks_after("half")]
    assert main(["chat"]) == 1
    assert capsys.readouterr() == (f"1\nhalf\n{ANSWER}\n", "pagewire: broken\n")
    assert conversations(service) == [["one"], ["one", "1", "two"], ["one", "1", "three"]]


def test_chat_forgets_what_no_longer_fits(
    service: ScriptedService, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "".join(f"{number}\n" for number in range(1, 6)))
    service.streams = [*(answers(letter) for letter in "abc"), refuses, refuses, answers("d")]
    assert main(["chat", "--system", "brief"]) == 0
    assert capsys.readouterr().err == (
        "pagewire: the conversation was too long for the service; its 3 oldest questions are forgotten\n"
    )
    assert conversations(service)[3:] == [
        ["brief", "1", "a", "2", "b", "3", "c", "4"],
        ["brief", "3", "c", "4"],
        ["brief", "4"],
        ["brief", "4", "d", "5"],
    ]


def test_a_question_that_never_fits_costs_no_memory(
    service: ScriptedService, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "1\n2\nlong\n3\n")
    service.streams = [answers("a"), answers("b"), *[refuses] * 3]
    assert main(["chat"]) == 1
    assert capsys.readouterr().err == "pagewire: too long\n"
    assert conversations(service)[-1] == ["1", "a", "2", "b", "3"]


def test_chat_needs_a_template(service: ScriptedService, capsys: Captured) -> None:
    service.chat = False
    assert main(["chat"]) == 1
    assert "scripted has no chat template" in capsys.readouterr().err
