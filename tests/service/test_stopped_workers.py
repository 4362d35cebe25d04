"""A worker that is stopped without ending is noticed within seconds, and its streams go on unchanged."""

import time

import pytest
from support.service import LIMIT_S, Service, ids_of, serve, stream_request

pytestmark = pytest.mark.slow

NOTICED_S = 3.0
"""Two seconds, three steps that are nothing beside them, and the way from here to there."""


def test_a_stopped_worker_is_a_pause_of_seconds() -> None:
    with serve(sim_step_us=20_000) as service:
        assert_streams_survive_a_stop(service, [4, 5], num_tokens=100)


def test_the_same_of_a_model_that_computes() -> None:
    with serve("smollm2-135m", ready_limit_s=180.0, device="cpu", dtype="float32") as service:
        assert_streams_survive_a_stop(service, list(range(100, 300)), num_tokens=40)


def assert_streams_survive_a_stop(service: Service, prompt: list[int], num_tokens: int) -> None:
    request = stream_request(prompt, stopping={"max_tokens": num_tokens, "ignore_eos": True}, sampling={"seed": 3})
    expected = ids_of(service.inference.StreamGenerate(request, timeout=LIMIT_S))
    assert len(expected) == num_tokens
    calls = [service.inference.StreamGenerate(request, timeout=LIMIT_S) for _ in range(3)]
    got: list[list[int]] = []
    worker = service.children()["worker"]
    for call in calls:
        assert next(call).HasField("started")
        got.append(ids_of([next(call)]))
    worker.suspend()
    began_s = time.monotonic()
    # SIGABRT, which a stopped process does not hear, and SIGKILL a second later.
    worker.wait(LIMIT_S)
    assert time.monotonic() - began_s < NOTICED_S + 1.5
    assert [ids + ids_of(call) for ids, call in zip(got, calls, strict=True)] == [expected] * 3
