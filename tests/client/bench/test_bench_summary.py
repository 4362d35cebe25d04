"""Percentiles, and what is made of a stream's messages and times."""

from array import array

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pagewire.client.bench.session import Trace, WorkerTime, idle_share
from pagewire.client.bench.summary import Distribution, Objective, distribution, percentile, read, summarize
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1.inference_pb2 import StreamGenerateResponse


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50),
    st.sampled_from([0.0, 1.0, 50.0, 90.0, 99.0, 100.0]),
)
def test_percentiles_are_numpys(samples: list[float], percent: float) -> None:
    assert percentile(sorted(samples), percent) == pytest.approx(float(np.percentile(samples, percent)), abs=1e-6)


def test_a_distribution_of_nothing_says_so() -> None:
    assert distribution([]) == Distribution(None, None, None)
    assert distribution([]).minus(3).as_json() == {"p50": None, "p90": None, "p99": None}
    assert distribution([1.0, 2.0, 3.0]).minus(1).p50 == 1


def test_a_percentage_is_checked() -> None:
    with pytest.raises(ValueError, match="101"):
        percentile([1.0], 101)


def started(prompt: int = 7, cached: int = 4) -> bytes:
    return StreamGenerateResponse(started=pb.Started(prompt_tokens=prompt, cached_tokens=cached)).SerializeToString()


def delta(count: int) -> bytes:
    return StreamGenerateResponse(delta=pb.Delta(tokens=[pb.Token(id=1)] * count)).SerializeToString()


def end() -> list[bytes]:
    finished = pb.Finished(reason=pb.FINISH_REASON_LENGTH)
    return [
        StreamGenerateResponse(finished=finished).SerializeToString(),
        StreamGenerateResponse(usage=pb.Usage()).SerializeToString(),
    ]


def trace(due_s: float, *messages: tuple[float, bytes], ended_s: float | None = None, error: str = "") -> Trace:
    found = Trace(due_s, array("d", [time_s for time_s, _ in messages]), [frame for _, frame in messages])
    found.ended_s, found.error = ended_s, error
    return found


def whole_stream() -> Trace:
    last = [(10.8, frame) for frame in end()]
    deltas = [(10.2, delta(1)), (10.3, delta(2)), (10.7, delta(1))]
    return trace(10.0, (10.1, started()), *deltas, *last, ended_s=10.9)


def test_a_stream_is_understood() -> None:
    reading = read(whole_stream())
    assert (reading.prompt_tokens, reading.cached_tokens, reading.tokens, reading.error) == (7, 4, 4, "")
    assert reading.ttft_ms == pytest.approx(200)
    assert reading.tpot_ms == pytest.approx(500 / 3)
    assert reading.e2e_ms == pytest.approx(900)
    assert reading.gaps() == [(10.2, 10.3), (10.3, 10.7)]


def test_a_stream_without_its_usage_has_failed() -> None:
    reading = read(trace(1.0, (1.1, started()), (1.2, delta(1)), ended_s=1.3))
    assert "without its usage" in reading.error
    assert reading.e2e_ms is None


def test_a_failed_stream_counts_as_failed_and_its_tokens_as_tokens() -> None:
    summary = summarize([read(whole_stream()), read(trace(10.0, (10.4, delta(3)), error="it broke"))])
    assert (summary.requests, summary.failed, summary.errors) == (2, 1, ("it broke",))
    assert (summary.output_tokens, summary.prompt_tokens, summary.cached_tokens) == (7, 7, 4)
    assert summary.wall_s == pytest.approx(0.9)
    assert summary.output_tokens_per_s == pytest.approx(7 / 0.9)
    assert summary.as_json()["tokens_per_message"] == 1.75
    assert summary.e2e_ms.p50 == pytest.approx(900)


def test_in_a_window_only_what_came_in_it_counts() -> None:
    summary = summarize([read(whole_stream())], (10.25, 10.5))
    assert (summary.requests, summary.output_tokens, summary.messages) == (0, 2, 1)
    assert summary.itl_ms == Distribution(None, None, None)
    assert summary.output_tokens_per_s == pytest.approx(8)


def test_nothing_at_all_is_a_summary_too() -> None:
    summary = summarize([])
    assert (summary.requests, summary.wall_s, summary.output_tokens_per_s) == (0, 0, 0)


@pytest.mark.parametrize(
    ("objective", "met"),
    [
        (Objective(), True),
        (Objective(ttft_ms=201, tpot_ms=167, e2e_ms=901), True),
        (Objective(ttft_ms=199), False),
        (Objective(tpot_ms=166), False),
        (Objective(e2e_ms=899), False),
    ],
)
def test_goodput_counts_what_met_the_objective(objective: Objective, met: bool) -> None:
    broken = read(trace(10.0, error="it broke"))
    summary = summarize([read(whole_stream()), broken], objective=objective)
    assert summary.goodput_per_s == pytest.approx(met / 0.9)


def test_the_idle_share_is_that_between_two_reports() -> None:
    assert idle_share(WorkerTime(100, 900, 1), WorkerTime(400, 1000, 9)) == pytest.approx(0.25)
    assert idle_share(WorkerTime(1, 1, 1), WorkerTime(1, 1, 1)) is None
    assert idle_share(None, WorkerTime(1, 1, 1)) is None
