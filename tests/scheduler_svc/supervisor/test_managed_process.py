"""When a process that ended is started again, and when no more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagewire.client import RetryPolicy
from pagewire.scheduler_svc.supervisor.managed_process import (
    LONGEST_BACKOFF_S,
    SERVED_S,
    ManagedProcess,
    RestartLimit,
    Role,
)
from pagewire.scheduler_svc.watchdog import Watchdog

START_S = 3.0


class Life:
    """A managed process and its clock."""

    def __init__(self, max_restarts: int) -> None:
        self.now_s = 1000.0
        self.process = ManagedProcess(Role.WORKER, 0, max_restarts, Watchdog(0, 1), lambda: self.now_s)

    def end(self, *, ready_for_s: float | None = None, has_served: bool = False) -> float:
        """One incarnation, ready for so long if at all; how long the next one waits."""
        if ready_for_s is not None:
            self.process.became_ready()
            self.now_s += ready_for_s
        if has_served:
            self.process.has_served()
        delay_s = self.process.restart_delay_s()
        self.process.ended()
        self.now_s += delay_s
        return delay_s


def test_ends_before_readiness_have_growing_delays_and_a_limit() -> None:
    life = Life(max_restarts=8)
    assert [life.end() for _ in range(8)] == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, LONGEST_BACKOFF_S]
    with pytest.raises(RestartLimit):
        life.end()


def test_one_that_is_ready_for_a_moment_without_serving_counts_against_the_limit() -> None:
    life = Life(max_restarts=3)
    assert [life.end(ready_for_s=0.01) for _ in range(3)] == [0.0] * 3
    with pytest.raises(RestartLimit):
        life.end(ready_for_s=0.01)


@given(st.lists(st.one_of(st.just((0.0, True)), st.tuples(st.floats(SERVED_S, 50), st.booleans())), max_size=100))
def test_one_that_serves_between_is_started_again_for_ever_and_soon(lives: list[tuple[float, bool]]) -> None:
    life = Life(max_restarts=1)
    delays = [life.end(ready_for_s=ready_s, has_served=has_served) for ready_s, has_served in lives]
    assert delays[:5] == [0.0] * len(delays[:5])
    assert all(delay <= 1.0 for delay in delays)


def test_five_ends_in_five_seconds_are_begun_again_at_once_and_more_wait() -> None:
    life = Life(max_restarts=3)
    assert [life.end(ready_for_s=0.5, has_served=True) for _ in range(5)] == [0.0] * 5
    began_s = life.now_s
    delays = [life.end(ready_for_s=0.1, has_served=True) for _ in range(100)]
    assert max(delays) == 1.0
    assert life.now_s - began_s > 80, "no more than about one a second goes on for ever"
    assert [life.end(ready_for_s=6, has_served=True) for _ in range(2)] == [0.0, 0.0]


def test_what_is_said_of_an_earlier_incarnation_is_not_taken_for_the_next_ones() -> None:
    life = Life(max_restarts=1)
    life.end(has_served=True)
    with pytest.raises(RestartLimit):
        life.end()


def test_a_clients_default_patience_outlasts_the_longest_delay_and_a_start() -> None:
    assert RetryPolicy().least_patience_s > LONGEST_BACKOFF_S + START_S
