"""The command with standard streams that are closed, full, without a reader, or not UTF-8; and its surroundings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.scripted_service import EOS, ScriptedService
from support.terminal import Terminal

from pagewire.v1 import inference_pb2

COMMAND = [sys.executable, "-m", "pagewire.client"]
ANSWER = "é中z"
COMMANDS = (
    ("generate", "hi"),
    ("generate", "--json", "one", "two"),
    ("models",),
    ("models", "--json"),
    ("health",),
    pytest.param(("doctor", "--json"), marks=pytest.mark.slow),
    ("generate", "--help"),
    ("serve", "--print-config"),
)


@pytest.fixture
def environ(service: ScriptedService, tmp_path: Path) -> Mapping[str, str]:
    service.answer = [*ANSWER.encode(), EOS]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PAGEWIRE_", "XDG_"))}
    return {**kept, "HOME": str(tmp_path), "PAGEWIRE_TARGET": service.address}


def run(
    *arguments: str | bytes, environ: Mapping[str, str], redirect: str = "", said: bytes = b"", cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Of the command, in a shell that redirects its streams."""
    shell = ["bash", "-c", f'"$@" {redirect}', "bash", *COMMAND, *arguments]
    return subprocess.run(shell, input=said, capture_output=True, timeout=120, env=dict(environ), cwd=cwd)


def sent(service: ScriptedService) -> list[list[str]]:
    """The contents of each conversation that the service was asked to continue."""
    return [
        [message.content for message in request.generation.prompt.chat.messages]
        for request in service.requests(inference_pb2.StreamGenerateRequest)
    ]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_output_that_is_not_taken_is_said(arguments: tuple[str, ...], environ: Mapping[str, str]) -> None:
    full = run(*arguments, environ=environ, redirect=">/dev/full")
    assert full.returncode == 1
    assert full.stderr == b"pagewire: standard output cannot be written: No space left on device\n"
    closed = run(*arguments, environ=environ, redirect=">&-")
    assert closed.returncode == 1
    assert closed.stderr.startswith(b"pagewire: standard output ")
    assert closed.stderr.count(b"\n") == 1


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_reader_that_has_gone_is_no_error(arguments: tuple[str, ...], environ: Mapping[str, str]) -> None:
    for unbuffered in ("", "1"):
        read, write = os.pipe()
        os.close(read)
        env = {**environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run([*COMMAND, *arguments], stdout=write, stderr=subprocess.PIPE, env=env, timeout=120)
        os.close(write)
        assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full", "2> >(:)", "<&-"])
def test_a_stream_that_is_not_needed_is_not_missed(environ: Mapping[str, str], redirect: str) -> None:
    done = run("generate", "hi", environ=environ, redirect=redirect)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"{ANSWER}\n", b"")


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full"])
def test_what_is_wrong_is_said_on_what_is_open(environ: Mapping[str, str], redirect: str) -> None:
    nowhere = {**environ, "PAGEWIRE_TARGET": "127.0.0.1:1"}
    failed = run("generate", "hi", environ=nowhere, redirect=redirect)
    assert failed.returncode == 1
    assert failed.stdout.startswith(b"pagewire: no service answers at 127.0.0.1:1")
    wrong = run("generate", "--bogus", environ=environ, redirect=redirect)
    assert wrong.returncode == 2
    assert b"unrecognized arguments: --bogus" in wrong.stdout


def test_with_nothing_open_the_status_says_it(environ: Mapping[str, str]) -> None:
    mute = run("generate", "hi", environ=environ, redirect=">&- 2>&-")
    assert (mute.returncode, mute.stdout, mute.stderr) == (1, b"", b"")


def test_chat_with_nothing_to_read(environ: Mapping[str, str]) -> None:
    done = run("chat", environ=environ, redirect="<&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict", "C"])
def test_an_encoding_that_lacks_characters(environ: Mapping[str, str], encoding: str) -> None:
    surroundings = {"PYTHONIOENCODING": encoding}
    if encoding == "C":
        surroundings = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    expected = ANSWER.encode("latin-1" if encoding == "latin-1" else "ascii", errors="replace")
    for arguments in (["--raw", "A"], ["A"], ["A", "B"]):
        done = run("generate", *arguments, environ={**environ, **surroundings})
        assert (done.returncode, done.stderr) == (0, b"")
        assert expected in done.stdout
    lossless = run("generate", "--json", "A", environ={**environ, **surroundings})
    assert (lossless.returncode, lossless.stderr) == (0, b"")
    assert json.loads(lossless.stdout)["text"] == ANSWER
    talked = run("chat", environ={**environ, **surroundings}, said=b"one\ntwo\n")
    assert (talked.returncode, talked.stdout, talked.stderr) == (0, expected + b"\n" + expected + b"\n", b"")
    for arguments in (["models"], ["doctor"], ["health"], ["generate", "--help"]):
        done = run(*arguments, environ={**environ, **surroundings})
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_input_is_read_as_utf8(service: ScriptedService, environ: Mapping[str, str], encoding: str) -> None:
    done = run("generate", "-", environ={**environ, "PYTHONIOENCODING": encoding}, said="né 中".encode())
    assert done.returncode == 0
    assert sent(service) == [["né 中"]]


@pytest.mark.parametrize("arguments", [("generate", "-"), ("generate",), ("chat",), ("generate", b"caf\xe9")])
def test_input_that_is_no_text_is_refused(environ: Mapping[str, str], arguments: tuple[str, ...]) -> None:
    done = run(*arguments, environ=environ, said=b"caf\xe9\n")
    assert done.returncode == 1
    assert done.stderr.startswith(b"pagewire: generation.prompt.chat.messages[0].content is 'caf\\udce9")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("flag", ["--model", "--target", "--file", "--stop", "--system", "--api-key", "--json-schema"])
def test_a_flag_that_is_no_text_is_refused(environ: Mapping[str, str], flag: str) -> None:
    done = run("generate", flag, b"caf\xe9", "hi" if flag != "--file" else "--raw", environ=environ)
    assert done.returncode == 1
    assert done.stderr.startswith(b"pagewire: ")
    assert done.stderr.count(b"\n") == 1


def test_chat_goes_on_after_a_line_that_is_no_text(service: ScriptedService, environ: Mapping[str, str]) -> None:
    done = run("chat", environ=environ, said=b"caf\xe9\ntwo\n")
    assert (done.returncode, done.stdout.decode()) == (1, f"{ANSWER}\n")
    assert sent(service) == [["two"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "surroundings",
    [
        {"TERM": "dumb", "NO_COLOR": "1"},
        {"COLUMNS": "0", "LINES": "x"},
        {"HOME": "/proc/1/nowhere"},
        {"HOME": ""},
        {"TMPDIR": "/nonexistent"},
        {"XDG_STATE_HOME": "relative", "XDG_CACHE_HOME": "relative"},
        {"http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1", "grpc_proxy": "http://127.0.0.1:1"},
        {"OMP_NUM_THREADS": "many"},
        {"PAGEWIRE_PORT": "tcp://10.0.0.7:50051", "PAGEWIRE_TARGET_SERVICE_HOST": "10.0.0.7"},
    ],
    ids=lambda each: next(iter(each)),
)
def test_surroundings_that_should_not_matter(
    environ: Mapping[str, str], surroundings: dict[str, str], tmp_path: Path
) -> None:
    for arguments in (["generate", "hi"], ["models"]):
        done = run(*arguments, environ={**environ, **surroundings}, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, b"")
    with Terminal([*COMMAND, "chat"], {**environ, **surroundings}) as terminal:
        terminal.wait_for("> ")
        terminal.type("one\n")
        terminal.wait_for(ANSWER)
        terminal.wait_for("> ")
        terminal.type("/exit\n")
        assert terminal.process.wait(20) == 0
        assert "Traceback" not in terminal.shown
    assert not (tmp_path / "relative").exists()


def test_files_of_the_working_directory_are_no_modules_of_ours(environ: Mapping[str, str], tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('not this one')\n")
    command = [sys.executable, "-P", "-m", "pagewire.client", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, timeout=120, env=dict(environ), cwd=tmp_path)
    report = json.loads(done.stdout)
    assert (report["worker_error"], report["models_error"]) == ("", "")


@pytest.mark.parametrize("arguments", [("generate", "hi"), ("models",), ("serve", "--print-config")])
def test_a_working_directory_that_is_gone(environ: Mapping[str, str], arguments: tuple[str, ...]) -> None:
    script = 'd=$(mktemp -d); cd "$d"; rmdir "$d"; exec "$@"'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *COMMAND, *arguments], capture_output=True, timeout=120, env=dict(environ)
    )
    assert (done.returncode, done.stderr) == (0, b"")
