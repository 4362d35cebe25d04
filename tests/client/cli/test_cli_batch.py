"""`pagewire generate --output`: a file of answers, whatever ends the run, and the run that goes on with it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.scripted_service import Responses, ScriptedService, Stream, overloaded, status, unavailable
from support.terminal import Terminal

from pagewire.client import RetryPolicy
from pagewire.client.__main__ import main
from pagewire.v1 import inference_pb2

Captured = pytest.CaptureFixture[str]
COMMAND = [sys.executable, "-m", "pagewire.client"]
PROMPTS = [f"prompt {number}" for number in range(6)]


@pytest.fixture(autouse=True)
def target(service: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGEWIRE_TARGET", service.address)
    monkeypatch.delenv("PAGEWIRE_API_KEY", raising=False)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


@pytest.fixture
def command(tmp_path: Path, output: Path) -> list[str]:
    """A batch of PROMPTS, one at a time."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return ["generate", "--raw", "--file", str(file), "--output", str(output), "--concurrency", "1", "--max-tokens=2"]


@pytest.fixture
def environ(service: ScriptedService, tmp_path: Path) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PAGEWIRE_", "XDG_"))}
    return {**kept, "HOME": str(tmp_path), "TERM": "xterm", "PAGEWIRE_TARGET": service.address}


def entries(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def asked(service: ScriptedService) -> list[str]:
    return [each.generation.prompt.text for each in service.requests(inference_pb2.StreamGenerateRequest)]


def fails(message: str) -> Stream:
    return lambda _request, context: context.abort_with_status(status(grpc.StatusCode.INVALID_ARGUMENT, message))


def answers(service: ScriptedService) -> Stream:
    return lambda request, _context: service._generate(request.generation)


def test_every_prompt_has_its_line(command: list[str], output: Path, capsys: Captured) -> None:
    command[command.index("--concurrency") + 1] = "4"
    assert main(command) == 0
    assert sorted(each["index"] for each in entries(output)) == [0, 1, 2, 3, 4, 5]
    assert {(each["text"], each["model"]) for each in entries(output)} == {("He", "scripted")}
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"pagewire: 6 of 6 prompts have answers in {output}; 12 tokens in ")


def test_one_that_goes_on_may_begin(command: list[str], output: Path) -> None:
    for _ in range(2):
        assert main([*command, "--resume"]) == 0
        assert [entry["index"] for entry in entries(output)] == list(range(len(PROMPTS)))


@pytest.mark.parametrize("flags", [[], ["--resume"]])
@pytest.mark.parametrize("path", ["/dev/full", "/dev/null", "."])
def test_what_is_no_file_is_none_to_go_on_with(
    command: list[str], capsys: Captured, path: str, flags: list[str]
) -> None:
    assert main([*command, f"--output={path}", *flags]) == 1
    assert f"--output '{path}' is no file" in capsys.readouterr().err


def test_a_link_stays_one(command: list[str], output: Path) -> None:
    link = output.with_name("link")
    link.symlink_to(output)
    output.touch()
    assert main([*command, f"--output={link}", "--resume"]) == 0
    assert link.is_symlink()
    assert len(entries(output)) == len(PROMPTS)


def test_a_full_disk_is_said_with_what_is_there(command: list[str], output: Path, environ: Mapping[str, str]) -> None:
    limited = ["bash", "-c", 'ulimit -f 1; trap "" XFSZ; exec "$@"', "bash", *COMMAND, *command, "--json"]
    done = subprocess.run(limited, env=dict(environ), capture_output=True, text=True, timeout=60)
    if not output.read_bytes().count(b"\n"):
        pytest.skip("one answer is more than the least limit")
    assert done.returncode == 1
    assert f"--output {str(output)!r} cannot be written: File too large; --resume goes on" in done.stderr
    assert main([*command, "--resume"]) == 0
    assert sorted(entry["index"] for entry in entries(output)) == list(range(len(PROMPTS)))


def test_one_prompt_goes_there_too(output: Path) -> None:
    assert main(["generate", "--output", str(output), "hi"]) == 0
    (entry,) = entries(output)
    assert entry["message"] == {"role": "assistant", "content": "Hello, wörld €"}


def test_what_failed_is_asked_again_and_nothing_else(
    service: ScriptedService, command: list[str], output: Path, capsys: Captured
) -> None:
    service.streams = [answers(service), fails("too long"), answers(service), fails("busy")]
    assert main(command) == 1
    assert [each.get("error") for each in entries(output)[:2]] == [
        None,
        {"type": "InvalidRequest", "message": "too long", "field": ""},
    ]
    assert "2 prompts failed" in capsys.readouterr().err
    service.seen.clear()
    assert main([*command, "--resume"]) == 0
    assert asked(service) == [PROMPTS[1], PROMPTS[3]]
    assert [each["index"] for each in entries(output)] == [0, 2, 4, 5, 1, 3]
    assert not any("error" in each for each in entries(output))
    service.seen.clear()
    assert main([*command, "--resume"]) == 0
    assert asked(service) == []
    assert capsys.readouterr().err.endswith(f"pagewire: 6 of 6 prompts have answers in {output}\n")


def test_whom_there_is_no_room_for_comes_again_when_told(
    service: ScriptedService, command: list[str], output: Path
) -> None:
    refused = [lambda _request, context: context.abort_with_status(overloaded(0.01))] * 3
    service.streams = [answers(service), *refused]
    assert main(command) == 0
    assert [each["index"] for each in entries(output)] == [0, 1, 2, 3, 4, 5]
    assert asked(service) == [PROMPTS[0], *[PROMPTS[1]] * 4, *PROMPTS[2:]]


def test_nobody_waits_for_room_past_the_time_limit(service: ScriptedService, command: list[str], output: Path) -> None:
    service.streams = [lambda _request, context: context.abort_with_status(overloaded(60))]
    assert main([*command, "--timeout", "30"]) == 1
    assert [each.get("error", {}).get("type") for each in entries(output)] == ["Overloaded", *[None] * 5]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_an_end_leaves_goes_on(
    service: ScriptedService, command: list[str], output: Path, environ: Mapping[str, str], number: int
) -> None:
    def hangs(_request: inference_pb2.StreamGenerateRequest, context: grpc.ServicerContext) -> Responses:
        service.hang(context)
        yield from ()

    service.streams = [answers(service)] * 3 + [hangs]
    process = subprocess.Popen([*COMMAND, *command], env=dict(environ), stderr=subprocess.PIPE)
    try:
        assert service.hanging.wait(20)
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, said) == (130 if number == signal.SIGINT else -number, b"")
    assert [each["index"] for each in entries(output)] == [0, 1, 2]
    with output.open("a") as file:
        file.write('{"index": 3, "request": "ab')  # as where it ends in the middle of a line
    service.seen.clear()
    assert main([*command, "--resume"]) == 0
    assert asked(service) == PROMPTS[3:]
    assert [each["index"] for each in entries(output)] == [0, 1, 2, 3, 4, 5]


def test_a_service_that_goes_ends_it(
    service: ScriptedService, command: list[str], output: Path, capsys: Captured
) -> None:
    gone = [lambda _request, context: context.abort_with_status(unavailable())] * RetryPolicy().max_attempts
    service.streams = [answers(service), *gone]
    assert main(command) == 1
    assert [each["index"] for each in entries(output)] == [0]
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("pagewire: 1 of 6 prompts have answers in")
    assert "no service answers at" in second
    assert second.endswith("; --resume goes on")
    service.streams = []
    assert main([*command, "--resume"]) == 0
    assert len(entries(output)) == 6


def test_a_file_that_is_there_is_left_alone(command: list[str], output: Path, capsys: Captured) -> None:
    output.write_text("mine")
    assert main(command) == 1
    assert capsys.readouterr().err == f"pagewire: --output '{output}' is there already; --resume goes on with it\n"
    assert output.read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            ["--temperature", "0.5"],
            "prompt 1 was asked otherwise; only the same prompts, flags and model go on",
        ),
        (["--seed", "1"], "line 1: prompt 1 was asked otherwise"),
    ],
)
def test_other_requests_do_not_go_on(
    command: list[str], output: Path, capsys: Captured, change: list[str], complaint: str
) -> None:
    assert main(command) == 0
    before = output.read_bytes()
    assert main([*command, *change, "--resume"]) == 1
    assert complaint in capsys.readouterr().err
    assert output.read_bytes() == before
    assert os.listdir(output.parent).count(output.name) == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("mine\n", "line 1: not JSON"),
        ("[1]\n", "line 1 is none of a batch"),
        ('{"index": true, "request": ""}\n', "line 1 is none of a batch"),
        ('{"index": 99, "request": ""}\n', "line 1: prompt 100 was asked otherwise"),
        ("\n", "line 1: not JSON"),
    ],
)
def test_other_files_do_not_go_on(
    command: list[str], output: Path, capsys: Captured, text: str, complaint: str
) -> None:
    output.write_text(text)
    assert main([*command, "--resume"]) == 1
    assert complaint in capsys.readouterr().err
    assert output.read_text() == text


def test_two_do_not_write_one_file(command: list[str], output: Path, capsys: Captured) -> None:
    output.write_text("")
    with output.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert main([*command, "--resume"]) == 1
    assert "is being written by another process" in capsys.readouterr().err


def test_a_file_that_cannot_be(command: list[str], output: Path, capsys: Captured, service: ScriptedService) -> None:
    command[command.index(str(output))] = str(output.parent / "nowhere" / "answers.jsonl")
    assert main(command) == 1
    assert "answers.jsonl' cannot be written: No such file or directory" in capsys.readouterr().err
    assert asked(service) == []
    assert main(["generate", "--resume", "hi"]) == 1
    assert "--resume needs --output" in capsys.readouterr().err


def test_a_person_sees_how_far_it_is(
    service: ScriptedService, command: list[str], environ: Mapping[str, str], output: Path
) -> None:
    def hangs(_request: inference_pb2.StreamGenerateRequest, context: grpc.ServicerContext) -> Responses:
        service.hang(context)
        yield from ()

    service.streams = [answers(service), fails("no"), hangs]
    with Terminal([*COMMAND, *command], environ) as terminal:
        terminal.wait_for("2/6")
        terminal.wait_for("1 failed")
        terminal.type("\x03")
        assert terminal.process.wait(10) == 130
    assert len(entries(output)) == 2
