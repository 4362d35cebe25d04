"""The comparison's own logic: same shape and same work on all sides, medians and bounds, and peers that fail."""

import json
import os
import sys
from pathlib import Path

import pytest
from benchmarks.compare_cpu import hf_config
from benchmarks.comparison import MANY, ONE, OURS, Bound, Case, Run, cases, in_turn, memory_bound, rate_bounds
from benchmarks.report import case_report
from benchmarks.sides import Peer, SideFailed

from pagewire.scheduler_svc.models.hf_config import read_config
from pagewire.scheduler_svc.models.random_shapes import RANDOM_SHAPES

CASE = Case("case", [[1, 2, 3], [4]], [2, 5])
DONE = Run(wall_s=2.0, prompt_tokens=4, cached_tokens=0, output_tokens=7)
SCRIPTED_PEER = """
import json, sys
print(json.dumps({"versions": {"peer": "1"}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["temperature"] > 1:
        sys.exit("too hot")
    print(json.dumps({
        "wall_s": 0.5,
        "prompt_tokens": sum(map(len, asked["prompts"])),
        "cached_tokens": 0,
        "output_tokens": sum(asked["max_tokens"]),
    }), flush=True)
"""


@pytest.mark.parametrize("shape", sorted(RANDOM_SHAPES))
def test_the_peers_get_our_shape(shape: str) -> None:
    assert read_config(json.dumps(hf_config(RANDOM_SHAPES[shape])).encode()).decoder == RANDOM_SHAPES[shape]


def test_the_cases_are_those_of_the_demand() -> None:
    asked = cases(0, 10_000)
    assert [(len(ids), count) for ids, count in zip(asked[ONE].prompts, asked[ONE].max_tokens, strict=True)] == [
        (64, 64)
    ]
    many = asked[MANY]
    assert len(many.prompts) == 32
    assert all(64 <= len(ids) <= 256 for ids in many.prompts)
    assert all(64 <= count <= 128 for count in many.max_tokens)
    assert many.output_tokens == sum(job.max_tokens for job in many.jobs())
    assert many.shortened(1).output_tokens == 32


def test_every_side_is_first_in_turn() -> None:
    sides = ["a", "b", "c"]
    assert ["".join(in_turn(sides, index)) for index in range(4)] == ["abc", "bca", "cab", "abc"]


@pytest.mark.parametrize(
    "run",
    [Run(2.0, 3, 0, 7), Run(2.0, 4, 2, 7), Run(2.0, 4, 0, 6)],
    ids=["fewer prompt tokens", "from a cache", "fewer output tokens"],
)
def test_a_side_that_did_less_is_refused(run: Run) -> None:
    DONE.check(CASE, "side")
    with pytest.raises(ValueError, match="side reports"):
        run.check(CASE, "side")


def test_ratios_are_of_medians() -> None:
    ours = [Run(wall_s, 64, 0, 64) for wall_s in (1.0, 2.0, 64.0)]
    theirs = [Run(wall_s, 64, 0, 64) for wall_s in (0.1, 4.0, 4.0)]
    found = {ONE: {OURS: ours, "vllm": theirs}}
    [bound] = rate_bounds(found)
    assert (bound.seen, bound.limit, bound.met) == (2.0, 0.95, True)
    report = case_report(Case(ONE, [[0] * 64], [64]), found[ONE])
    assert report["ratios"] == {"vllm": 2.0}
    assert report["sides"][OURS]["rounds_tokens_per_s"] == [64.0, 32.0, 1.0]


def test_bounds_hold_at_their_limit() -> None:
    assert Bound("", 1.2, "at least", 1.2, "x").met
    assert not Bound("", 1.19, "at least", 1.2, "x").met
    limit = int(1.4 * (1_000_000_000 + 2_000_000_000) + 700_000_000)
    assert memory_bound(limit, 1_000_000_000, 2_000_000_000).met
    assert not memory_bound(limit + 1_000_000, 1_000_000_000, 2_000_000_000).met


def test_a_peer_answers_and_one_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    script = tmp_path / "side.py"
    script.write_text(SCRIPTED_PEER)
    peer = Peer("scripted", sys.executable, script, {}, os.environ)
    try:
        assert peer.start(CASE, 0.0) > 0
        assert peer.versions == {"peer": "1"}
        assert peer.run(CASE, 0.6) == Run(0.5, 4, 0, 7)
        assert peer.family().peak_memory().largest > 1_000_000
        with pytest.raises(SideFailed, match="scripted has ended: \ntoo hot"):
            peer.run(CASE, 2.0)
    finally:
        peer.close()
    peer.close()
