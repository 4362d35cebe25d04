"""`tests/gpu/run.sh --dry-run`: every part comes to its end on a machine without a GPU, and says so in both files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu.report.__main__ import TOTAL_S, environ_of
from gpu.report.budget import DRY_STAGES, EXACT_STAGES, GPU_STAGES, PEER_STAGES, SWEEP_STAGES, Share, only
from gpu.report.checks import Check, PartResult, result_of
from gpu.report.installed import PACKAGES, difference
from gpu.report.part import PARTS
from gpu.report.results import append_result, read_results
from gpu.report.window import decode_window
from gpu.report.writing import markdown, report

from pagewire.client.bench.summary import Reading

SCRIPT = Path(__file__).parents[1] / "gpu" / "run.sh"
SPEEDS = {
    "service": [
        "nano-vllm workload, random:tiny",
        "one stream, tiny",
        "prefill of 16 tokens",
        "idle share of the device in steady decode, 4 streams",
        "tokens of 3 streams whose worker was killed",
        "their longest pause",
        "nano-vllm workload: the service / the worker without gRPC",
    ],
    "direct": ["one stream without gRPC", "nano-vllm workload without gRPC"],
    "large": ["4 streams, tiny"],
    "peer": ["the service / transformers' generate_batch"],
    "kernel times": [
        "kernels of a decode step, 1 stream at a context of 27",
        "kernels of a decode step, 4 streams at a context of 27",
        "kernels of a step of 4 prompts of 16",
    ],
}
ABOUT = {"card": "a card", "torch": "2", "date": "today"}


def test_both_lists_of_stages_have_every_part() -> None:
    more = tuple(stage for stage in EXACT_STAGES + SWEEP_STAGES + PEER_STAGES if stage not in GPU_STAGES)
    for stages in (GPU_STAGES + more, DRY_STAGES):
        assert sorted(part for stage in stages for share in stage for part in share.parts) == sorted(PARTS)


def test_the_limits_of_all_parts_fit_the_run() -> None:
    """What brings the packages takes some of it, too."""
    for stages in (GPU_STAGES, EXACT_STAGES, SWEEP_STAGES, PEER_STAGES):
        assert sum(max(share.limit_s for share in stage) for stage in stages) <= TOTAL_S


def test_some_parts_alone_and_the_card() -> None:
    found = only(GPU_STAGES, ["steps", "large"])
    assert [[share.parts for share in stage] for stage in found] == [[("card",)], [("steps",)], [("large",)]]
    assert len(only(GPU_STAGES + PEER_STAGES, ["peer"])) == 2
    found = only(GPU_STAGES + EXACT_STAGES, ["exact"])
    assert [part for stage in found for share in stage for part in share.parts] == [
        "card",
        "exact",
        "exact, fp32",
        "exact times",
    ]
    assert only(((Share(("steps", "kernels", "flash"), 3),),), ["kernels", "flash"]) == (
        (Share(("kernels", "flash"), 3),),
    )


def test_compiled_kernels_are_kept_where_somebody_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    assert environ_of(tmp_path, dry_run=False)["TRITON_CACHE_DIR"] == str(tmp_path / "triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/kept")
    assert environ_of(tmp_path, dry_run=False)["TRITON_CACHE_DIR"] == "/kept"


@pytest.mark.slow
def test_a_dry_run(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    pytest.importorskip("transformers")
    environ = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", str(SCRIPT), "--dry-run", "--out", str(tmp_path)],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=285,
    )
    said = json.loads((tmp_path / "gpu.json").read_text())
    assert [part["part"] for part in said["parts"]] == list(DRY_STAGES[0][0].parts)
    expected = dict.fromkeys(PARTS, ("held", "")) | {"collectives": ("skipped", "no NCCL")}
    expected |= dict.fromkeys(("sanitizer", "sweep", "steps, wide heads"), ("skipped", "a dry run has no device"))
    expected["exact"] = ("skipped", "Triton's interpreter multiplies bf16 wrongly")
    log = (tmp_path / "gpu.log").read_text()
    assert {part["part"]: (part["status"], part["note"]) for part in said["parts"]} == expected, log
    assert done.returncode == 0
    assert said.keys() == {"held", "dry_run", "seconds", "card", "torch", "date", "hardware", "versions", "parts"}
    assert (said["held"], said["dry_run"]) == (True, True)
    assert said["seconds"] < 110

    checks = {part["part"]: part["checks"] for part in said["parts"]}
    for part, wanted in SPEEDS.items():
        for check, name in zip(checks[part], wanted, strict=True):
            assert check["what"].startswith(name)
            assert check["seen"] > 0
            assert check["limit"] is None or not check["is_judged"] or check["what"].startswith("tokens of")
    assert [check["floor"] > check["limit"] > 0 for check in (*checks["service"][:3], *checks["large"])] == [True] * 4
    for part in ("skinny linears", "skinny linears, large", "kernels", "steps", "logits", "flash"):
        assert checks[part]
        assert all(check["is_judged"] and check["limit"] is not None for check in checks[part])
    assert len(checks["kernels"]) == 11

    table = (tmp_path / "gpu.md").read_text()
    for check in (check for found in checks.values() for check in found):
        assert check["what"] in table
    assert done.stdout.rstrip().endswith("everything held")


def test_what_cannot_run_says_so(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHON": "/nonexistent/python"}
    done = subprocess.run(["bash", str(SCRIPT)], env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "finds no Python >= 3.11 with torch >= 2.11 and Triton" in done.stderr


def test_the_pagewire_that_is_installed_must_be_this_tree_s(tmp_path: Path) -> None:
    tree = SCRIPT.parents[2]
    assert difference(tree) == ""
    for folder in PACKAGES.values():
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "worker" / "loop.py").write_bytes((tree / "worker" / "loop.py").read_bytes())
    assert difference(tmp_path) == ""
    (tmp_path / "worker" / "loop.py").write_text("")
    assert difference(tmp_path).endswith("loop.py is not this tree's worker/loop.py")
    (tmp_path / "client" / "another.py").write_text("")
    (tmp_path / "worker" / "loop.py").unlink()
    assert difference(tmp_path).endswith("another.py is not this tree's client/another.py")


def test_half_a_line_is_no_result(tmp_path: Path) -> None:
    file = tmp_path / "results"
    assert read_results(file) == []
    append_result(file, PartResult(part="card", status="held"))
    with file.open("ab") as lines:
        lines.write(b'{"part":"ste')
    assert [result.part for result in read_results(file)] == ["card"]


def test_a_report_holds_where_every_part_does() -> None:
    good = result_of(
        "card", 1.0, [Check(what="a | b", seen=2.0, unit="x", relation="at least", limit=1.0, floor=4.0)], {}
    )
    gone = PartResult(part="flash", status="skipped", note="no\nFlashAttention")
    bad = result_of("steps", 1.0, [Check(what="c", seen=2.0, unit="x", relation="at most", limit=1.0)], {})
    assert report([good, gone], ABOUT, False, 1.0)["held"] is True
    assert report([good, bad], ABOUT, False, 1.0)["held"] is False
    assert report([], ABOUT, False, 1.0)["held"] is False
    table = markdown([good, gone, bad], ABOUT, False)
    assert "| card | a / b | 2 x | at least 1 | 4 (50%) | holds |" in table
    assert "| flash | no FlashAttention | | | | skipped |" in table
    assert "| steps | c | 2 x | at most 1 |  | **does not hold** |" in table


def reading(arrivals: list[tuple[float, int]], error: str = "") -> Reading:
    return Reading(
        due_s=0.0, arrivals=tuple(arrivals), prompt_tokens=10, cached_tokens=0, ended_s=arrivals[-1][0], error=error
    )


def test_the_window_in_which_all_decode() -> None:
    early = reading([(1.0, 1), (2.0, 1), (3.0, 1), (4.0, 1)])
    late = reading([(2.0, 1), (3.0, 2), (4.0, 1), (9.0, 50)])
    window = decode_window([early, late])
    assert (window.num_tokens, window.seconds, window.tokens_per_s) == (5, 2.0, 2.5)
    assert window.mean_context == ((12 + 1) + (11 + 1.5)) / 2
    with pytest.raises(ValueError, match="at no time decoding all together"):
        decode_window([early, reading([(4.0, 1), (5.0, 1)])])
    with pytest.raises(ValueError, match="1 of 2 streams failed: gone"):
        decode_window([early, reading([(4.0, 1)], "gone")])
