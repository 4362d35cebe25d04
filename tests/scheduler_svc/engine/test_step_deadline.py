"""The step deadline: an honest worker is never overdue, a stopped one soon is."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pagewire.scheduler_svc.engine.step_deadline import StepDeadline
from pagewire.scheduler_svc.engine.steps import PlannedStep, StepSize
from pagewire.wire.plan import StepPlan

LONGEST_S, SLACK_S, TICK_S = 300.0, 1.5, 0.25
NONE = np.zeros(0, np.int32)

sizes = st.builds(
    lambda tokens, context: StepSize(tokens, tokens * context), st.integers(1, 8192), st.integers(1, 100_000)
)


def step(step_id: int, size: StepSize) -> PlannedStep:
    return PlannedStep(StepPlan(0, step_id), NONE, NONE, [], size)


def overdue_after(deadline: StepDeadline, held: PlannedStep, for_s: float) -> list[tuple[int, float]]:
    """(tick, limit) each time that this step is said to be overdue while it is held for so long."""
    ticks = range(int(for_s / TICK_S) + 1)
    return [(tick, limit) for tick in ticks if (limit := deadline.overdue_s(held)) is not None]


class Machine:
    """Takes at most linearly longer for more tokens and for more context."""

    def __init__(self, fixed_s: float, token_s: float, attended_s: float) -> None:
        self._fixed_s, self._token_s, self._attended_s = fixed_s, token_s, attended_s

    def step_s(self, size: StepSize) -> float:
        return self._fixed_s + max(size.tokens * self._token_s, size.attended * self._attended_s)


machines = st.builds(Machine, st.floats(0, 2), st.floats(0, 0.01), st.floats(0, 1e-6))


@settings(max_examples=300, deadline=None)
@given(machines, st.lists(st.tuples(sizes, st.floats(1, 2)), min_size=1, max_size=40))
def test_an_honest_worker_is_never_overdue(machine: Machine, history: list[tuple[StepSize, float]]) -> None:
    deadline = StepDeadline(math.inf, SLACK_S, TICK_S)
    for step_id, (size, noise) in enumerate(history):
        took_s = machine.step_s(size) * noise
        assert deadline.limit_s(size) >= took_s
        assert overdue_after(deadline, step(step_id, size), min(took_s, 60.0)) == []
        deadline.answered(size, took_s)


@settings(max_examples=200, deadline=None)
@given(machines, st.lists(st.tuples(sizes, st.floats(1, 2)), min_size=1, max_size=20), st.data())
def test_a_stop_is_noticed_within_three_times_the_slowest_of_that_size(
    machine: Machine, history: list[tuple[StepSize, float]], data: st.DataObject
) -> None:
    deadline = StepDeadline(LONGEST_S, SLACK_S, TICK_S)
    for size, noise in history:
        deadline.answered(size, machine.step_s(size) * noise)
    size, _ = data.draw(st.sampled_from(history))
    # Within a power of two, the slowest may be of half the size.
    promise_s = 3 * 2 * max(machine.step_s(known) * noise for known, noise in history if comparable(known, size))
    told = overdue_after(deadline, step(1, size), min(LONGEST_S, promise_s) + 2.0)
    assert told
    tick, _ = told[0]
    # A step becomes the oldest at most one tick before it is first looked at.
    assert (tick + 1) * TICK_S <= min(LONGEST_S, promise_s) + 2.0


def comparable(one: StepSize, other: StepSize) -> bool:
    return [n.bit_length() for n in one] == [n.bit_length() for n in other]


def test_of_equal_steps_the_slowest_counts_three_times() -> None:
    deadline = StepDeadline(LONGEST_S, SLACK_S, TICK_S)
    size = StepSize(8, 800)
    assert deadline.limit_s(size) == LONGEST_S
    for took_s in (0.1, 0.5, 0.2):
        deadline.answered(size, took_s)
    assert deadline.limit_s(size) == 3 * 0.5 + SLACK_S
    # More to compute may take longer in proportion, less not less: a step costs something whatever its size.
    assert deadline.limit_s(StepSize(16, 1600)) == 3 * 1.0 + SLACK_S
    assert deadline.limit_s(StepSize(8, 8000)) == 3 * 5.0 + SLACK_S
    assert deadline.limit_s(StepSize(1, 1)) == 3 * 0.5 + SLACK_S
    assert deadline.limit_s(StepSize(8192, 8192 * 50)) == LONGEST_S
    # A slow one of another size does not loosen what a quick one says.
    deadline.answered(StepSize(4, 400), 60.0)
    assert deadline.limit_s(size) == 3 * 0.5 + SLACK_S


def test_constraints_that_are_compiled_in_a_step_have_time_for_it() -> None:
    deadline = StepDeadline(LONGEST_S, SLACK_S, TICK_S)
    deadline.answered(StepSize(8, 800, grammars=8), 9.0)
    assert deadline.limit_s(StepSize(8, 800)) == LONGEST_S
    deadline.answered(StepSize(8, 800), 0.1)
    assert deadline.limit_s(StepSize(8, 800, grammars=8)) - deadline.limit_s(StepSize(8, 800)) >= 3 * 8 * 1.0


def test_it_is_told_once_for_each_limit_that_passes_and_a_new_step_counts_anew() -> None:
    deadline = StepDeadline(1.0, SLACK_S, TICK_S)
    held = step(0, StepSize(1, 1))
    assert overdue_after(deadline, held, 3.0) == [(4, 1.0), (8, 1.0), (12, 1.0)]
    assert overdue_after(deadline, step(1, StepSize(1, 1)), 0.75) == []
    assert deadline.overdue_s(None) is None
    assert overdue_after(deadline, step(1, StepSize(1, 1)), 0.75) == []


def test_a_longest_wait_of_0_is_none() -> None:
    deadline = StepDeadline(0.0, SLACK_S, TICK_S)
    deadline.answered(StepSize(1, 1), 0.001)
    assert overdue_after(deadline, step(0, StepSize(1, 1)), 1000.0) == []


def test_a_machine_that_became_slower_is_given_the_time_it_takes() -> None:
    deadline, size = StepDeadline(LONGEST_S, SLACK_S, TICK_S), StepSize(512, 512)
    deadline.answered(size, 0.9)
    took_s = 8 * 0.9
    tries = 0
    while overdue_after(deadline, step(tries, size), took_s):
        tries += 1
    assert tries == 1
    deadline.answered(StepSize(4, 4), 0.01)
    assert overdue_after(deadline, step(8, size), took_s) == [], "a smaller step says nothing of this one"
    deadline.answered(size, took_s)
    assert deadline.limit_s(size) == 3 * took_s + SLACK_S
