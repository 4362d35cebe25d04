"""The command as a process: terminal, signals, pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from support.scripted_service import ScriptedService
from support.terminal import Terminal

from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2

COMMAND = [sys.executable, "-m", "pagewire.client"]
ANSWER = "Hello, wörld €"
CTRL_C, CTRL_D = "\x03", "\x04"


@pytest.fixture
def environ(service: ScriptedService, tmp_path: Path) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PAGEWIRE_", "XDG_"))}
    return {**kept, "HOME": str(tmp_path), "TERM": "dumb", "PAGEWIRE_TARGET": service.address}


def begin_then_hang(service: ScriptedService) -> None:
    """The next stream says "Hel" and then nothing more."""

    def script(_request: inference_pb2.StreamGenerateRequest, context: grpc.ServicerContext) -> object:
        service.watch(context)
        yield inference_pb2.StreamGenerateResponse(started=pb.Started(request_id="x", seed=1, prompt_tokens=3))
        yield inference_pb2.StreamGenerateResponse(
            delta=pb.Delta(
                tokens=[pb.Token(id=byte, text=bytes([byte])) for byte in b"Hel"], parts=[pb.Part(content="Hel")]
            )
        )
        service.hang(context)

    service.streams = [script]  # type: ignore[list-item]


def test_ctrl_c_stops_the_answer_and_not_the_chat(service: ScriptedService, environ: Mapping[str, str]) -> None:
    begin_then_hang(service)
    with Terminal([*COMMAND, "chat"], environ) as terminal:
        terminal.wait_for("> ")
        terminal.type("one\n")
        terminal.wait_for("Hel")
        terminal.type(CTRL_C)
        terminal.wait_for("[stopped]")
        assert service.ended.wait(10)
        terminal.wait_for("> ")
        terminal.type_until("> ", keys=CTRL_C)  # with nothing to stop, a new line
        terminal.type("two\n")
        terminal.wait_for(ANSWER)
        terminal.wait_for("> ")
        terminal.type(CTRL_D)
        assert terminal.process.wait(10) == 0
    second = service.requests(inference_pb2.StreamGenerateRequest)[1].generation.prompt.chat
    assert [message.content for message in second.messages] == ["one", "Hel", "two"]


def test_a_terminal_shows_reasoning_dimmed_and_no_control_characters(
    service: ScriptedService, environ: Mapping[str, str]
) -> None:
    def script(_request: inference_pb2.StreamGenerateRequest, _context: grpc.ServicerContext) -> object:
        yield inference_pb2.StreamGenerateResponse(started=pb.Started(request_id="x", seed=1, prompt_tokens=3))
        parts = [pb.Part(reasoning="Hm\x1b[31m"), pb.Part(content="Yes")]
        yield inference_pb2.StreamGenerateResponse(delta=pb.Delta(tokens=[pb.Token(id=1, text=b"?")], parts=parts))
        yield inference_pb2.StreamGenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_EOS))
        yield inference_pb2.StreamGenerateResponse(usage=pb.Usage(prompt_tokens=3))

    service.streams = [script]  # type: ignore[list-item]
    with Terminal([*COMMAND, "chat"], environ) as terminal:
        terminal.wait_for("> ")
        terminal.type("one\n")
        terminal.wait_for("\x1b[2mHm[31m\x1b[0m\r\nYes\r\n")
        terminal.wait_for("> ")
        terminal.type(CTRL_D)
        assert terminal.process.wait(10) == 0


def test_ctrl_c_stops_a_tool_s_command_and_not_the_chat(service: ScriptedService, environ: Mapping[str, str]) -> None:
    def script(_request: inference_pb2.StreamGenerateRequest, _context: grpc.ServicerContext) -> object:
        yield inference_pb2.StreamGenerateResponse(started=pb.Started(request_id="x", seed=1, prompt_tokens=3))
        call = pb.ToolCallPart(index=0, id="abcdefghi", name="f", arguments="{}", is_complete=True)
        parts = [pb.Part(tool_call=call)]
        yield inference_pb2.StreamGenerateResponse(delta=pb.Delta(tokens=[pb.Token(id=1, text=b"?")], parts=parts))
        yield inference_pb2.StreamGenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_EOS))
        yield inference_pb2.StreamGenerateResponse(usage=pb.Usage(prompt_tokens=3))

    service.streams = [script]  # type: ignore[list-item]
    # It says on the terminal that it runs, and waits for a process of its own.
    waits = "f=sh -c 'echo waiting > /dev/tty; sleep 100; true'"
    with Terminal([*COMMAND, "chat", "--tool", waits], environ) as terminal:
        terminal.wait_for("> ")
        terminal.type("one\n")
        terminal.wait_for("waiting")
        terminal.type(CTRL_C)
        terminal.wait_for("[stopped]")
        terminal.wait_for("> ")
        terminal.type("two\n")
        terminal.wait_for(ANSWER)
        terminal.wait_for("> ")
        terminal.type(CTRL_D)
        assert terminal.process.wait(10) == 0
    second = service.requests(inference_pb2.StreamGenerateRequest)[1].generation.prompt.chat
    assert [message.content for message in second.messages] == ["two"]


def test_ctrl_c_before_the_first_word_leaves_no_trace(service: ScriptedService, environ: Mapping[str, str]) -> None:
    service.hang_after_started()
    with Terminal([*COMMAND, "chat"], environ) as terminal:
        terminal.wait_for("> ")
        terminal.type("one\n")
        assert service.hanging.wait(20)
        terminal.type(CTRL_C)
        terminal.wait_for("[stopped]")
        terminal.wait_for("> ")
        terminal.type("two\n")
        terminal.wait_for(ANSWER)
        terminal.wait_for("> ")
        terminal.type(CTRL_D)
        assert terminal.process.wait(10) == 0
    second = service.requests(inference_pb2.StreamGenerateRequest)[1].generation.prompt.chat
    assert [message.content for message in second.messages] == ["two"]


def test_typed_lines_are_kept_for_the_next_chat(environ: Mapping[str, str], tmp_path: Path) -> None:
    with Terminal([*COMMAND, "chat"], environ) as terminal:
        terminal.wait_for("> ")
        terminal.type("a question\n")
        terminal.wait_for(ANSWER)
        terminal.wait_for("> ")
        terminal.type("/exit\n")
        assert terminal.process.wait(10) == 0
    history = tmp_path / ".local" / "state" / "pagewire" / "chat_history"
    assert "a question" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_a_terminal_gets_no_control_characters(environ: Mapping[str, str], service: ScriptedService) -> None:
    service.answer = [*"red \x1b[31malert\x07\x9b2J".encode()]
    with Terminal([*COMMAND, "generate", "hi"], environ) as terminal:
        terminal.wait_for("red [31malert2J")
        assert terminal.process.wait(10) == 0
    piped = subprocess.run([*COMMAND, "generate", "hi"], env=dict(environ), capture_output=True, check=True)
    assert piped.stdout == bytes([*service.answer, 10])


def test_ctrl_c_ends_generate_with_130(service: ScriptedService, environ: Mapping[str, str]) -> None:
    begin_then_hang(service)
    with Terminal([*COMMAND, "generate", "hi"], environ) as terminal:
        terminal.wait_for("Hel")
        assert service.hanging.wait(10)
        terminal.type(CTRL_C)
        assert terminal.process.wait(10) == 130
        assert service.ended.wait(10)
        assert "Traceback" not in terminal.shown


def test_an_interrupt_ends_several_prompts(service: ScriptedService, environ: Mapping[str, str]) -> None:
    begin_then_hang(service)
    process = subprocess.Popen(
        [*COMMAND, "generate", "--concurrency", "1", "one", "two"],
        env=dict(environ),
        stderr=subprocess.PIPE,
    )
    try:
        assert service.hanging.wait(20)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (130, b"")
    assert service.ended.wait(10)
    assert len(service.requests(inference_pb2.StreamGenerateRequest)) == 1


def test_a_reader_that_leaves_is_no_error(service: ScriptedService, environ: Mapping[str, str]) -> None:
    service.answer = [*b"many words " * 20_000]
    process = subprocess.Popen(
        [*COMMAND, "generate", "hi"], env=dict(environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(20) == 141
    process.stderr.close()


def test_json_on_standard_output_alone(environ: Mapping[str, str]) -> None:
    done = subprocess.run(
        [*COMMAND, "generate", "--json", "--raw"],
        env=dict(environ),
        input=b"one\ntwo\n",
        capture_output=True,
        check=True,
    )
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == [ANSWER, ANSWER]
    assert done.stderr == b""


def test_chat_without_a_terminal(environ: Mapping[str, str]) -> None:
    done = subprocess.run([*COMMAND, "chat"], env=dict(environ), input=b"one\ntwo", capture_output=True, check=True)
    assert done.stdout.decode() == f"{ANSWER}\n" * 2
    assert done.stderr == b""


def test_health_is_watched_until_the_service_goes(service: ScriptedService, environ: Mapping[str, str]) -> None:
    watching = subprocess.Popen(
        [*COMMAND, "health", "--watch"], env=dict(environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert watching.stdout is not None
    assert watching.stdout.readline() == b"SERVING\n"
    service.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert watching.stdout.readline() == b"NOT_SERVING\n"
    service.__exit__()
    _, err = watching.communicate(timeout=20)
    assert watching.returncode == 1
    # gRPC may put a line of its own before it, about the connection.
    assert err.splitlines()[-1].startswith(b"pagewire: no service answers at")
    assert b"Traceback" not in err


def test_serve_becomes_the_supervisor(environ: Mapping[str, str]) -> None:
    done = subprocess.run(
        [*COMMAND, "serve", "--model", "random:tiny", "--print-config"],
        env=dict(environ),
        capture_output=True,
        check=True,
    )
    assert b'model = "random:tiny"' in done.stdout
    wrong = subprocess.run([*COMMAND, "serve", "--nonsense"], env=dict(environ), capture_output=True, check=False)
    assert wrong.returncode == 2
    assert b"--nonsense" in wrong.stderr


def test_help_lists_every_command(environ: Mapping[str, str]) -> None:
    done = subprocess.run([*COMMAND, "--help"], env=dict(environ), capture_output=True, check=True, text=True)
    for command in ("serve", "generate", "chat", "models", "health", "doctor"):
        assert f"\n    {command} " in done.stdout
