"""When a call is tried again, by the policy alone and over a real connection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scripted_service import ScriptedService, unavailable

from pagewire.client import NO_RETRY, Client, Overloaded, RetryPolicy, Unavailable
from pagewire.client.retry import Attempts


@given(st.integers(1, 30), st.floats(0, 0.999), st.floats(0, 8))
def test_delays_grow_to_their_bound_and_follow_advice(failures: int, jitter: float, advice: float) -> None:
    policy = RetryPolicy(max_attempts=100, initial_backoff_s=0.1, max_backoff_s=2, jitter=lambda: jitter)
    delay = policy.delay_s(Unavailable("away", retry_after_s=advice), failures)
    assert delay is not None
    backoff = min(2.0, 0.1 * 2 ** (failures - 1))
    assert max(advice, backoff / 2) <= delay <= max(advice, backoff)


def test_only_unavailable_and_only_so_often() -> None:
    policy = RetryPolicy(max_attempts=3)
    assert policy.delay_s(Unavailable("away"), 2) is not None
    assert policy.delay_s(Unavailable("away"), 3) is None
    assert policy.delay_s(Unavailable("away", retry_after_s=60), 1) is None
    assert policy.delay_s(Overloaded("full", retry_after_s=0), 1) is None
    assert policy.delay_s(Overloaded("full", retry_after_s=0), 2) is None
    assert NO_RETRY.delay_s(Unavailable("away"), 1) is None


def test_a_stream_that_goes_on_waits_for_its_place_as_it_is_told() -> None:
    policy = RetryPolicy(max_attempts=4)
    assert policy.delay_s(Overloaded("full", retry_after_s=3), 2, is_resumed=True) == 3
    assert policy.delay_s(Overloaded("full", retry_after_s=60), 3, is_resumed=True) == 10, "and asks again"
    assert policy.delay_s(Overloaded("full", retry_after_s=0), 2, is_resumed=True) == 0.1
    assert policy.delay_s(Overloaded("full", retry_after_s=3), 4, is_resumed=True) is None
    assert policy.delay_s(Overloaded("too much", retry_after_s=None), 2, is_resumed=True) is None
    assert policy.delay_s(Overloaded("not read", retry_after_s=3), 1, is_resumed=True) is None, "what broke it ends it"


def test_no_wait_passes_the_deadline() -> None:
    now = 100.0
    attempts = Attempts(RetryPolicy(jitter=lambda: 0.99), 0.15, clock=lambda: now)
    assert attempts.failed(Unavailable("away")) is not None
    now = 100.1
    assert attempts.remaining_s() == pytest.approx(0.05)
    assert attempts.failed(Unavailable("away")) is None
    now = 101
    assert attempts.remaining_s() == 0


def test_progress_makes_the_next_failure_a_first_one() -> None:
    attempts = Attempts(RetryPolicy(max_attempts=2), None)
    assert attempts.failed(Unavailable("away")) is not None
    attempts.progress()
    assert attempts.failed(Unavailable("away")) is not None
    assert attempts.failed(Unavailable("away")) is None


def test_a_call_is_tried_again(client: Client, service: ScriptedService) -> None:
    service.failures = [unavailable("WORKER_LOST", 0.001), unavailable()]
    assert client.generate("hi").text
    assert len(service.seen) == 3


def test_a_stream_is_tried_again_before_its_first_message(client: Client, service: ScriptedService) -> None:
    service.failures = [unavailable("DRAINING"), unavailable()]
    assert client.stream("hi", resume=False).result().text
    assert len(service.seen) == 3
    assert service.seen[0] == service.seen[2]


def test_attempts_are_bounded(client: Client, service: ScriptedService) -> None:
    service.failures = [unavailable()] * 10
    with pytest.raises(Unavailable):
        client.generate("hi")
    with pytest.raises(Unavailable):
        client.stream("hi").result()
    assert len(service.seen) == 6
