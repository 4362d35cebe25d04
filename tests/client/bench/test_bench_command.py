"""`pagewire bench` against a service on the sim device: what scripts read, and what it refuses."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.service import Service, serve

from pagewire.client.__main__ import main

DISTRIBUTIONS = ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms")
EVERYWHERE = ("hardware", "versions", "command", "workload")
SMALL = ["--warm-up=1", "--num-seqs=6", "--input-len=20:30", "--output-len=5:9"]

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serve(max_model_len=512, load_interval_s=0.05, max_prefill_tokens_per_step=64) as running:
        yield running


def targets(service: Service) -> list[str]:
    return [f"--target={service.address}", f"--admin-target={service.admin_address}"]


def result(capsys: Captured, *arguments: str, status: int = 0) -> dict[str, Any]:
    assert main(["bench", *arguments, "--json"]) == status
    (line,) = capsys.readouterr().out.splitlines()
    said: dict[str, Any] = json.loads(line)
    for key in EVERYWHERE:
        assert said[key], key
    assert said["command"].startswith(f"pagewire bench {arguments[0]}")
    return said


def check_load(said: dict[str, Any]) -> None:
    for name in DISTRIBUTIONS:
        values = said[name]
        assert 0 < values["p50"] <= values["p90"] <= values["p99"], name
    assert said["wall_s"] > 0
    assert said["output_tokens_per_s"] == pytest.approx(said["output_tokens"] / said["wall_s"], rel=0.01)
    assert said["failed"] == 0


def test_throughput(service: Service, capsys: Captured) -> None:
    said = result(capsys, "throughput", *targets(service), *SMALL, "--max-id=1000", "--seed=3")
    check_load(said)
    assert said["requests"] == 6
    assert 6 * 20 <= said["prompt_tokens"] <= 6 * 30
    assert 6 * 5 <= said["output_tokens"] <= 6 * 9
    assert 0 <= said["worker_idle_share"] <= 1
    assert said["service"]["device"] == "sim"
    assert said["workload"]["seed"] == 3
    again = result(capsys, "throughput", *targets(service), *SMALL, "--max-id=1000", "--seed=3")
    for key in ("prompt_tokens", "output_tokens", "cached_tokens"):
        assert again[key] == said[key]


def test_serve_with_several_rates(service: Service, capsys: Captured) -> None:
    objective = "ttft=5000,e2e=9000"
    said = result(capsys, "serve", *targets(service), *SMALL, "--rate=50,200", "--slo", objective, "--shared-prefix=64")
    check_load(said)
    assert [load["load"] for load in said["loads"]] == ["50 requests/s", "200 requests/s"]
    for load in said["loads"]:
        check_load(load)
        assert load["goodput_per_s"] == pytest.approx(6 / load["wall_s"], rel=0.01)
        # The first of each load computes the prefix, whoever comes with it at the same time may too.
        assert load["cached_tokens"] >= 64
        assert load["prompt_tokens"] >= 6 * (64 + 20)


def test_serve_with_prompts_of_a_file(service: Service, capsys: Captured, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"token_ids": [1, 2, 3]}\n{"token_ids": [4, 5, 6, 7, 8]}\n')
    said = result(capsys, "serve", *targets(service), *SMALL, "--prompts", str(file), "--concurrency=2")
    check_load(said)
    assert said["prompt_tokens"] == 3 * 3 + 3 * 5


def test_a_long_prompt_beside_decodes(service: Service, capsys: Captured) -> None:
    flags = ["--long-prompt=300", "--streams=3", "--output-len=200:300", "--trials=2", "--quiet=0.2"]
    said = result(capsys, "serve", *targets(service), *flags)
    assert said["max_prefill_tokens_per_step"] == 64
    assert said["itl_allowed_p99_ms"] == pytest.approx(
        said["itl_without_ms"]["p99"] + said["prefill_chunk_ms"], abs=0.01
    )
    assert said["itl_with_ms"]["p99"] > 0
    alone, chunk, allowed, seen = (float(part) for part in re.findall(r"([\d.]+) ms", said["itl_p99_bound"]))
    assert (alone, chunk) == pytest.approx((said["itl_without_ms"]["p99"], said["prefill_chunk_ms"]), abs=0.06)
    assert (allowed, seen) == pytest.approx((said["itl_allowed_p99_ms"], said["itl_with_ms"]["p99"]), abs=0.06)
    assert said["within_share"] == (said["itl_with_ms"]["p99"] <= said["itl_allowed_p99_ms"])
    assert said["long_prompt_ttft_ms"]["p50"] > 0


def test_a_cached_prefix(service: Service, capsys: Captured) -> None:
    flags = ["--cached-prefix=160", "--input-len=200", "--trials=2"]
    said = result(capsys, "serve", *targets(service), *flags)
    assert said["cached_tokens_of_a_prompt"] == 160
    assert said["cached_tokens"] == 2 * 160
    cached, uncached = said["ttft_cached_ms"]["p50"], said["ttft_uncached_ms"]["p50"]
    assert said["ttft_ratio"] == pytest.approx(cached / uncached, rel=0.01)


def test_control_plane(capsys: Captured) -> None:
    said = result(capsys, "control-plane", "--streams=4,1", "--duration=0.3", "--output-len=30:60", "--step-us=2000")
    check_load(said)
    assert [load["load"] for load in said["loads"]] == ["4 streams", "1 stream"]
    four, one = said["added_latency"]
    assert (four["streams"], one["streams"]) == (4, 1)
    assert said["added_ttft_idle_ms"]["p50"] > 0
    for load in (four, one):
        # The steps in flight: the rest of one, and all of the next.
        assert load["added_ttft_ms"]["p90"] > 2, load
    assert four["added_ttft_ms"] != one["added_ttft_ms"]
    assert one["output_tokens_per_s"] <= 1000 / 2 * 1.1


def test_engine(capsys: Captured) -> None:
    flags = ["--running=8", "--steps=60", "--warm-up-steps=20", "--input-len=20:40", "--output-len=10:30"]
    said = result(capsys, "engine", *flags)
    parts = [said[f"{part}_us"] for part in ("plan", "encode", "decode", "apply")]
    assert all(part > 0 for part in parts)
    assert max(parts) < said["step_us"] <= said["step_us_p99"]
    assert said["plan_bytes"] > 0
    assert said["steps"] == 60
    assert said["rows_per_step"] >= 6


def test_tables_say_where_and_with_what(service: Service, capsys: Captured) -> None:
    assert main(["bench", "serve", *targets(service), *SMALL]) == 0
    out = capsys.readouterr().out
    for word in ("hardware", "versions", "command", "workload", "16 clients", "ttft p50", "itl p99", "e2e p90"):
        assert word in out


def test_requests_that_fail_are_counted_and_named(service: Service, capsys: Captured) -> None:
    flags = ["--num-seqs=3", "--input-len=600", "--max-id=9", "--warm-up=0"]
    assert main(["bench", "throughput", *targets(service), *flags, "--json"]) == 1
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert (said["failed"], said["requests"], said["output_tokens"]) == (3, 3, 0)
    assert said["ttft_ms"] == {"p50": None, "p90": None, "p99": None}
    assert "512" in captured.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["throughput"], "choose --max-id"),
        (["throughput", "--max-id=5000"], "--max-id is 5000"),
        (["serve", "--cached-prefix=300", "--input-len=200"], "must be shorter than the prompt of 200"),
        (["serve", "--long-prompt=50"], "no longer than the service's prefill share of 64"),
        (["serve", "--prompts=x.txt", "--shared-prefix=4"], "--shared-prefix"),
        (["serve", "--prompts=/nowhere.txt"], "cannot be read"),
        (["serve", "--raw"], "--raw is about"),
        (["serve", "--set", "max_n=3"], "--set max_n"),
        (["throughput", "--spawn"], "--admin-target goes with --target"),
        (["serve", "--cached-prefix=30", "--input-len=100:200"], "of one length"),
        (["serve", "--cached-prefix=30", "--slo=ttft=3"], "--slo does not apply to --cached-prefix"),
        (["serve", "--long-prompt=300", "--input-len=7"], "--input-len does not apply to --long-prompt"),
        (["serve", "--rate=3", "--trials=7"], "--trials does not apply to a load"),
        (["serve", "--long-prompt=300", "--prefill-share=65"], "the service says that its own is 64"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    service: Service, capsys: Captured, arguments: list[str], complaint: str
) -> None:
    assert main(["bench", *arguments, *targets(service)]) == 1
    assert complaint in capsys.readouterr().err


def test_a_long_prompt_needs_the_prefill_share(service: Service, capsys: Captured) -> None:
    assert main(["bench", "serve", "--long-prompt=300", targets(service)[0]]) == 1
    assert "--prefill-share" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["throughput", "--input-len=9:3"],
        ["serve", "--rate=0"],
        ["serve", "--rate=1", "--concurrency=2"],
        ["serve", "--slo=speed=3"],
        ["control-plane", "--streams=0"],
        ["engine", "--running=none"],
    ],
)
def test_wrong_flags_are_wrong_arguments(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    assert ended.value.code == 2


def test_control_plane_keeps_its_device(capsys: Captured) -> None:
    assert main(["bench", "control-plane", "--set", "device=cpu"]) == 1
    assert "sets device" in capsys.readouterr().err


def test_a_picture_needs_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "throughput", "--plot=x.png"]) == 1
    assert "pagewire[plot]" in capsys.readouterr().err


def test_pictures(service: Service, capsys: Captured, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for number, flags in enumerate(
        ([*SMALL, "--rate=100,200"], ["--cached-prefix=160", "--input-len=200", "--trials=1"])
    ):
        file = tmp_path / f"{number}.png"
        assert main(["bench", "serve", *targets(service), *flags, f"--plot={file}"]) == 0
        assert file.read_bytes().startswith(b"\x89PNG")
