"""Steps in flight: order, epochs, and which of the worker's idle time counts."""

import numpy as np
import pytest

from pagewire.scheduler_svc.engine.steps import Pipeline, PipelineError, PlannedStep, StepSize
from pagewire.wire.plan import StepPlan, StepResult


def push(pipeline: Pipeline) -> None:
    plan = StepPlan(pipeline.epoch, pipeline.next_step_id)
    pipeline.push(PlannedStep(plan, np.zeros(0, np.int32), np.zeros(0, np.int32), [], StepSize(1, 1)), 0.0)


def answer(pipeline: Pipeline, step_id: int, idle_us: int) -> None:
    assert pipeline.pop(StepResult(pipeline.epoch, step_id, b"", 10, idle_us), 0.0) is not None


@pytest.fixture
def pipeline() -> Pipeline:
    begun = Pipeline(2, first_epoch=5)
    assert begun.begin() == 5
    return begun


def test_as_many_plans_as_its_depth(pipeline: Pipeline) -> None:
    push(pipeline)
    assert pipeline.has_room
    push(pipeline)
    assert not pipeline.has_room
    answer(pipeline, 0, 0)
    assert pipeline.has_room


def test_answers_come_in_order(pipeline: Pipeline) -> None:
    push(pipeline)
    push(pipeline)
    with pytest.raises(PipelineError, match="step 1 came where 0"):
        pipeline.pop(StepResult(5, 1, b"", 0, 0), 0.0)


def test_an_answer_of_an_earlier_epoch_is_none(pipeline: Pipeline) -> None:
    push(pipeline)
    assert pipeline.begin() == 6
    assert pipeline.pop(StepResult(5, 0, b"", 9, 9), 0.0) is None
    assert (pipeline.busy_us, pipeline.idle_us) == (0, 0)


def test_the_wait_for_a_sequence_to_come_is_no_idle_time(pipeline: Pipeline) -> None:
    push(pipeline)
    push(pipeline)
    answer(pipeline, 0, 0)
    answer(pipeline, 1, 3)
    pipeline.rest()
    push(pipeline)
    push(pipeline)
    answer(pipeline, 2, 1_000_000)
    answer(pipeline, 3, 4)
    assert (pipeline.busy_us, pipeline.idle_us) == (40, 7)


def test_a_new_epoch_has_not_rested(pipeline: Pipeline) -> None:
    pipeline.rest()
    pipeline.begin()
    push(pipeline)
    answer(pipeline, 0, 5)
    assert pipeline.idle_us == 5
