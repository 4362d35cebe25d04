"""What sequences ask of their logits, through the scheduler: prompts that are scored, and results that do not fit."""

import numpy as np
import pytest

from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.scheduler_svc.engine.results import StepRows
from pagewire.scheduler_svc.engine.scheduler import Scheduler
from pagewire.scheduler_svc.engine.steps import PlannedStep
from pagewire.wire.columns import pack, unpack_pairs
from pagewire.wire.logits import MAX_SCORED_ROWS, LogitControls, LogprobsRequest
from pagewire.wire.plan import NO_TOKEN, NOTHING_LEFT, ChunkLogprobs, RowFailure, RowLogprobs
from pagewire.wire.requests import FinishKind, Submit
from pagewire.wire.sampling import SamplingParams

CONFIG = SchedulerConfig(
    max_num_seqs=8,
    max_num_batched_tokens=256,
    max_prefill_tokens_per_step=256,
    max_model_len=512,
    max_queued=32,
    max_queued_tokens=1 << 20,
    vocab_size=101,
    eos_token_ids=(0,),
    num_blocks=200,
    block_size=16,
    enable_prefix_caching=True,
)
FRONTEND = 3


def submit(scheduler: Scheduler, handle: int, length: int, **asked: object) -> None:
    prompt = [handle % 7 + 1 + i % 90 for i in range(length)]
    message = Submit(
        handle,
        "r",
        pack(prompt),
        b"",
        SamplingParams(),
        20,
        [],
        True,
        0,
        b"",
        None,
        **asked,  # type: ignore[arg-type]
    )
    assert scheduler.submit(FRONTEND, message, 0.0) is None


class Steps:
    """Plans steps and answers them as a worker would."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._step_id = 0

    def plan(self) -> PlannedStep:
        step = self.scheduler.plan(0, self._step_id, 0.0)
        assert step is not None
        self._step_id += 1
        return step

    def result(self, step: PlannedStep) -> StepRows:
        scores = [
            ChunkLogprobs(
                each.chunk,
                each.position,
                np.full(each.num_tokens, -1.0, "<f4").tobytes(),
                pack(np.full(each.num_tokens * each.num_candidates, 5)),
                np.full(each.num_tokens * each.num_candidates, -2.0, "<f4").tobytes(),
            )
            for each in step.scored
        ]
        return StepRows(np.full(len(step.rows), 9, np.int32), prompt_logprobs=scores)


def chunks_of(step: PlannedStep) -> list[list[int]]:
    chunks: list[list[int]] = unpack_pairs(step.plan.chunks).tolist()
    return chunks


def test_prompts_are_scored_in_small_chunks_and_others_get_the_rest() -> None:
    steps = Steps(Scheduler(CONFIG))
    submit(steps.scheduler, 1, 150, prompt_logprobs=2)
    submit(steps.scheduler, 2, 100, prompt_logprobs=0)
    submit(steps.scheduler, 3, 150)
    positions: dict[int, list[int]] = {1: [], 2: []}
    first = steps.plan()
    assert chunks_of(first) == [[first.plan.admit[0].slot, MAX_SCORED_ROWS], [first.plan.admit[2].slot, 150]]
    step = first
    while True:
        assert sum(each.num_tokens for each in step.scored) <= MAX_SCORED_ROWS
        for frontend, message in steps.scheduler.apply(step, steps.result(step)).scores:
            assert frontend == FRONTEND
            count = len(message.chosen) // 4
            assert len(message.ids) == 4 * count * {1: 2, 2: 0}[message.handle]
            positions[message.handle] += range(message.position, message.position + count)
        if positions[1][-1:] == [149] and positions[2][-1:] == [99]:
            break
        step = steps.plan()
    assert positions == {1: list(range(1, 150)), 2: list(range(1, 100))}


def test_a_prompt_that_is_scored_is_computed_although_it_is_cached() -> None:
    steps = Steps(Scheduler(CONFIG))
    submit(steps.scheduler, 1, 64)
    steps.scheduler.apply(step := steps.plan(), steps.result(step))
    submit(steps.scheduler, 8, 64)  # the same prompt
    submit(steps.scheduler, 15, 64, prompt_logprobs=0)
    step = steps.plan()
    assert [(admit.num_cached, admit.prompt_logprobs) for admit in step.plan.admit] == [(64, None), (0, 0)]
    assert [start.message.cached_tokens for start in step.starts] == [64, 0]


def test_a_worker_lost_in_the_middle_has_the_prompt_scored_from_its_start_and_once_it_is_not_again() -> None:
    steps = Steps(Scheduler(CONFIG))
    submit(steps.scheduler, 1, 100, prompt_logprobs=0)
    steps.scheduler.apply(step := steps.plan(), steps.result(step))
    steps.scheduler.restart()
    step = steps.plan()
    assert step.plan.admit[0].prompt_logprobs == 0
    assert step.scored[0].position == 1
    steps.scheduler.apply(step, steps.result(step))
    steps.scheduler.apply(step := steps.plan(), steps.result(step))
    steps.scheduler.restart()
    assert steps.plan().plan.admit[0].prompt_logprobs is None


def test_results_that_do_not_fit_are_refused_and_change_nothing() -> None:
    steps = Steps(Scheduler(CONFIG))
    submit(steps.scheduler, 1, 40, prompt_logprobs=1)
    submit(steps.scheduler, 2, 4, logprobs=LogprobsRequest(1))
    step = steps.plan()
    good = steps.result(step)
    (scores,) = good.prompt_logprobs
    one = RowLogprobs(1, -0.5, pack([3]), np.float32(-0.5).tobytes())

    def chunk(**change: object) -> StepRows:
        fields = {name: getattr(scores, name) for name in scores.__struct_fields__}
        return good._replace(prompt_logprobs=[ChunkLogprobs(**{**fields, **change})])  # type: ignore[arg-type]

    def row(*change: RowLogprobs) -> StepRows:
        return good._replace(logprobs=list(change))

    failed = good._replace(tokens=np.array([9, NO_TOKEN], np.int32), failures={1: RowFailure(1, "x")}, logprobs=[one])
    for wrong in (
        good._replace(prompt_logprobs=[]),
        good._replace(prompt_logprobs=[scores, scores]),
        chunk(chunk=1),
        chunk(position=2),
        chunk(chosen=scores.chosen[4:]),
        chunk(chosen=scores.chosen[1:]),
        chunk(ids=scores.ids[4:], values=scores.values[4:]),
        chunk(values=scores.values[4:]),
        chunk(ids=pack([101] * 39)),
        row(RowLogprobs(2, -0.5, b"", b"")),
        row(one, one),
        row(RowLogprobs(1, -0.5, pack([3]), b"")),
        row(RowLogprobs(1, -0.5, pack([-2]), np.float32(0).tobytes())),
        row(RowLogprobs(1, -0.5, b"abc", b"abc")),
        failed,
    ):
        with pytest.raises(ValueError, match=r"."):
            steps.scheduler.apply(step, wrong)
    outcome = steps.scheduler.apply(step, row(one))
    assert [(each.index, each.chosen) for each in outcome.logprobs] == [(1, -0.5)]
    assert len(outcome.scores) == 1


def test_a_row_whose_request_leaves_nothing_ends_with_its_own_kind_and_its_cache_is_kept() -> None:
    steps = Steps(Scheduler(CONFIG))
    submit(steps.scheduler, 1, 64, controls=LogitControls(banned_ids=pack([1])))
    step = steps.plan()
    failure = RowFailure(0, NOTHING_LEFT, by_request=True)
    outcome = steps.scheduler.apply(step, StepRows(np.array([NO_TOKEN], np.int32), {0: failure}))
    assert [(end.message.kind, end.message.reason) for end in outcome.finishes] == [
        (FinishKind.NOTHING_LEFT, NOTHING_LEFT)
    ]
    submit(steps.scheduler, 8, 64)
    assert steps.plan().plan.admit[0].num_cached == 64


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"controls": LogitControls(bias_ids=pack([1]))}, "bias_values"),
        ({"controls": LogitControls(bias_ids=pack([1]), bias_values=np.float32(101).tobytes())}, "bias_values"),
        ({"controls": LogitControls(bias_ids=pack([1]), bias_values=np.float32("nan").tobytes())}, "bias_values"),
        ({"controls": LogitControls(bias_ids=pack(range(101)) * 11)}, "at most 1024"),
        ({"controls": LogitControls(banned_ids=pack([101]))}, "banned_ids"),
        ({"controls": LogitControls(banned_ids=pack([2, 1]))}, "ascend"),
        ({"controls": LogitControls(allowed_ids=pack([-1]))}, "allowed_ids"),
        ({"controls": LogitControls(allowed_ids=b"abc")}, "no column"),
        ({"controls": LogitControls(bad_words=[b""])}, r"bad_words\[0\] has no id"),
        ({"controls": LogitControls(bad_words=[pack([1]), pack([200])])}, r"bad_words\[1\]"),
        ({"controls": LogitControls(bad_words=[pack([1]) * 2048, pack([1]) * 2049])}, "have 4097 ids in all"),
        ({"logprobs": LogprobsRequest(named_ids=pack([101]))}, "named_ids"),
        ({"logprobs": LogprobsRequest(named_ids=pack([1]) * 129)}, "at most 128"),
        ({"prompt_logprobs": 21}, "0 to 20"),
        ({"prompt_logprobs": -1}, "0 to 20"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_waits(asked: dict[str, object], what: str) -> None:
    scheduler = Scheduler(CONFIG)
    with pytest.raises(ValueError, match=what):
        submit(scheduler, 1, 4, **asked)
    assert not scheduler.has_work
