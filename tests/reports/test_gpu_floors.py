"""The floors of `tests/gpu/run.sh` against the figures that were computed by hand for one H200."""

import pytest
from gpu.report.bounds import H200, LARGE, ONE_STREAM, PREFILL, WORKLOAD, speed_check
from gpu.report.checks import Check, result_of
from gpu.report.floors import Floors, Rates, Request

from pagewire.client.bench.workload import nano_vllm
from pagewire.scheduler_svc.models.random_shapes import RANDOM_SHAPES

SMALL = Floors(RANDOM_SHAPES["qwen3-0.6b"], H200)
LARGE_MODEL = Floors(RANDOM_SHAPES["qwen3-8b"], H200)


def test_bytes() -> None:
    assert SMALL.kv_bytes_per_token == 114_688
    assert SMALL.step_weight_bytes == pytest.approx(1.19e9, rel=5e-3)
    assert LARGE_MODEL.kv_bytes_per_token == 147_456


def test_floors_of_an_h200() -> None:
    assert SMALL.decode_step_s(1, 1024) == pytest.approx(0.305e-3, rel=0.01)
    assert SMALL.decode_rate(1, 1024) == pytest.approx(ONE_STREAM.h200_floor, rel=0.01)
    assert SMALL.decode_rate(256, 1024) == pytest.approx(34_700, rel=0.03)
    assert SMALL.prefill_rate(1024) == pytest.approx(PREFILL.h200_floor, rel=0.02)
    assert LARGE_MODEL.decode_rate(64, 1024) == pytest.approx(LARGE.h200_floor, rel=0.01)


def test_the_floor_of_nano_vllm_s_workload() -> None:
    requests = [Request(len(job.prompt), job.max_tokens) for job in nano_vllm()]
    assert sum(request.num_prompt for request in requests) == 142_827
    assert sum(request.num_output for request in requests) == 133_966
    assert SMALL.batch_rate(requests) == pytest.approx(WORKLOAD.h200_floor, rel=0.02)


def test_a_batch_is_its_prompts_and_then_its_steps() -> None:
    alone = SMALL.batch_s([Request(100, 3)])
    assert alone == pytest.approx(SMALL.prefill_s(100) + SMALL.decode_step_s(1, 101) + SMALL.decode_step_s(1, 102))
    both = SMALL.batch_s([Request(100, 3), Request(50, 1)])
    assert both == pytest.approx(alone + SMALL.prefill_s(50))
    assert SMALL.batch_s([Request(10, 1)]) == SMALL.prefill_s(10)


def test_many_rows_are_bound_by_operations() -> None:
    slow = Floors(RANDOM_SHAPES["qwen3-0.6b"], Rates(bytes_per_s=4.3e12, flops_per_s=1e12))
    assert slow.decode_step_s(256, 0) == pytest.approx(256 * slow.step_weight_bytes / 1e12)


def test_another_card_owes_the_same_share_of_its_floor() -> None:
    assert WORKLOAD.limit("NVIDIA H200", 1.0) == 25_000
    assert WORKLOAD.limit("NVIDIA A100", 18_100) == pytest.approx(12_500)
    check = speed_check("speed", 12_000, 18_100, WORKLOAD, "NVIDIA A100", is_judged=True)
    assert not check.holds
    assert result_of("part", 1.0, [check], {}).status == "failed"


def test_what_is_not_judged_does_not_fail_a_part() -> None:
    slow = Check(what="speed", seen=1.0, unit="x", relation="at least", limit=2.0, is_judged=False)
    odd = Check(what="error", seen=float("nan"), unit="", relation="at most", limit=2.0)
    assert result_of("part", 1.0, [slow], {}).status == "held"
    assert result_of("part", 1.0, [slow, odd], {}).status == "failed"
