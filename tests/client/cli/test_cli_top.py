"""`pagewire top`: pictures of an engine of any size, once and on a terminal, of a service that may go away."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from rich.console import Console
from support.service import Service, serve, stream_request
from support.terminal import Terminal

from pagewire.client.__main__ import main
from pagewire.client.cli.engine_picture import Seen, picture
from pagewire.v1 import admin_pb2 as pb

Captured = pytest.CaptureFixture[str]
COMMAND = [sys.executable, "-m", "pagewire.client", "top"]


def load(**figures: int) -> pb.Load:
    return pb.Load(state=pb.SERVICE_STATE_READY, total_blocks=100, **figures)


def lines(
    before: Seen | None, now: Seen, uses: bytes = b"", size: tuple[int, int] = (80, 24), **how: bool
) -> list[str]:
    console = Console(width=size[0], record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    blocks = pb.WatchBlocksResponse(uses=uses, total_blocks=100)
    console.print(picture(before, now, blocks, *size, **{"is_unicode": True, **how}))
    return console.export_text().splitlines()


def test_rates_are_those_between_two_moments() -> None:
    before = Seen(10.0, load(steps=100, output_tokens=1000, worker_busy_us=50_000, worker_idle_us=0))
    after = load(
        steps=300,
        output_tokens=5000,
        worker_busy_us=1_250_000,
        worker_idle_us=400_000,
        prompt_tokens=800,
        cached_prompt_tokens=200,
        running_sequences=12,
        waiting_sequences=3456,
        paused_sequences=12,
        preemptions=7,
    )
    said = "\n".join(lines(before, Seen(12.0, after)))
    for part in (
        r"state +ready",
        r"running +12 sequences",
        r"waiting +3,456 sequences, 12 paused",
        r"output +2,000 tokens/s",
        r"prompts +400 tokens/s",
        r"steps +100\.0 a second",
        r"a step +6\.00 ms",
        r"worker idle +25\.0%",
        r"preempted +7 in all",
        r"from the cache +25% of prompt tokens",
    ):
        assert re.search(part, said), (part, said)


@pytest.mark.parametrize("before", [None, Seen(1.0, load(steps=500))])
def test_there_are_no_rates_without_a_moment_before_of_the_same_engine(before: Seen | None) -> None:
    said = "\n".join(lines(before, Seen(2.0, load(steps=3))))
    assert re.search(r"output +– tokens/s", said)
    assert re.search(r"a step +–", said)


def test_the_map() -> None:
    uses = bytes([0, 255, 1, 2, 254])
    assert lines(None, Seen(0.0, load()), uses)[7:9] == ["·░▓██", "█ shared  ▓ held  ░ cached  · free  the first 5"]
    plain = lines(None, Seen(0.0, load()), uses, is_unicode=False)
    assert plain[7] == ".+#@@"


@pytest.mark.parametrize("size", [(80, 24), (200, 50), (80, 10)])
@pytest.mark.parametrize("num_blocks", [1, 80, 81, 70_000])
def test_every_size_fits(size: tuple[int, int], num_blocks: int) -> None:
    uses = bytearray(num_blocks)
    uses[-1] = 3
    said = lines(None, Seen(0.0, load()), bytes(uses), size)
    assert len(said) <= size[1]
    assert max(map(len, said)) <= size[0]
    assert "█" in said[-2], "a sign shows the most that any of its blocks is used for"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serve() as running:
        request = stream_request([1] * 200, n=4, stopping={"max_tokens": 50, "ignore_eos": True})
        assert list(running.inference.StreamGenerate(request, timeout=20))
        yield running


@pytest.fixture
def environ(tmp_path: Path) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PAGEWIRE_", "XDG_"))}
    return {**kept, "HOME": str(tmp_path), "TERM": "xterm"}


def test_one_picture(service: Service, capsys: Captured) -> None:
    assert main(["top", "--admin-target", service.admin_address, "--once", "--interval", "0.5"]) == 0
    said = capsys.readouterr()
    assert re.search(r"state +ready", said.out)
    assert "░" in said.out
    assert said.err == ""


@pytest.mark.parametrize("key", ["q", "\x03"])
def test_on_a_terminal_until_a_key(service: Service, environ: Mapping[str, str], key: str) -> None:
    with Terminal([*COMMAND, "--admin-target", service.admin_address, "--interval", "0.5"], environ) as terminal:
        for _ in range(2):
            terminal.wait_for("worker idle")
            terminal.wait_for("free")
        terminal.type(key)
        assert terminal.process.wait(10) == 0
        assert "Traceback" not in terminal.shown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(service: Service, environ: Mapping[str, str], number: int) -> None:
    with Terminal([*COMMAND, "--admin-target", service.admin_address], environ) as terminal:
        terminal.wait_for("worker idle")
        terminal.process.send_signal(number)
        terminal.wait_for("\x1b[?25h")  # the cursor
        terminal.wait_for("\x1b[?1049l")  # and the screen from before
        assert terminal.process.wait(10) == 128 + number


def test_it_says_what_has_no_admin_service(service: Service, capsys: Captured) -> None:
    assert main(["top", "--once", "--admin-target", service.address]) == 1
    assert f"{service.address} has no AdminService" in capsys.readouterr().err


def test_it_waits_for_a_service_that_goes_away(environ: Mapping[str, str]) -> None:
    with serve() as service:
        command = [*COMMAND, "--admin-target", service.admin_address, "--interval", "0.5"]
        with Terminal(command, environ) as terminal:
            terminal.wait_for("ready")
            service.process.send_signal(signal.SIGKILL)
            terminal.wait_for("no answer: ")
            terminal.type("q")
            assert terminal.process.wait(10) == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--once", "--admin-target", "127.0.0.1:1"], "no service answers at 127.0.0.1:1"),
        (["--once", "--interval", "0.4"], "--interval is 0.4; it must be 0.5 to 3600 s"),
        (["--once", "--interval", "nan"], "--interval is nan"),
        (["--once", "--interval", "inf"], "--interval is inf"),
        ([], "--once prints one picture"),
    ],
)
def test_what_cannot_be_watched(capsys: Captured, arguments: list[str], problem: str) -> None:
    assert main(["top", *arguments]) == 1
    assert problem in capsys.readouterr().err
