"""The scheduler's policies, one test each."""

import pytest
from support.scheduler_integrity import check_integrity
from support.scheduler_world import FRONTEND, World

from pagewire.scheduler_svc.engine import admitter
from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.scheduler_svc.engine.results import StepRows, rows_of
from pagewire.scheduler_svc.engine.steps import PlannedStep, StepSize
from pagewire.wire.columns import pack, unpack, unpack_pairs
from pagewire.wire.plan import NO_TOKEN, RowFailure, StepResult
from pagewire.wire.requests import FinishKind, RejectKind, Submit
from pagewire.wire.sampling import SamplingParams

CONFIG = SchedulerConfig(
    max_num_seqs=4,
    max_num_batched_tokens=64,
    max_prefill_tokens_per_step=64,
    max_model_len=256,
    max_queued=8,
    max_queued_tokens=1 << 20,
    vocab_size=101,
    eos_token_ids=(0,),
    num_blocks=64,
    block_size=4,
    enable_prefix_caching=True,
)


def world(depth: int = 1, **changes: object) -> World:
    return World(SchedulerConfig(**{**{f: getattr(CONFIG, f) for f in CONFIG.__struct_fields__}, **changes}), depth)


def plan(w: World) -> PlannedStep:
    """Plan and run one step, and look at it before its result is applied."""
    assert w.plan()
    return w._in_flight[-1][0]


def chunks_of(step: PlannedStep) -> list[list[int]]:
    return unpack_pairs(step.plan.chunks).tolist()


def prompt(length: int, start: int = 1) -> list[int]:
    return [start + i % 90 for i in range(length)]


def test_a_long_prompt_is_chunked_to_the_budget() -> None:
    w = world(max_num_batched_tokens=16)
    w.submit(prompt(40), 1, ignore_eos=True)
    sizes = []
    while w.plan():
        sizes.append(chunks_of(w._in_flight[-1][0])[0][1])
        w.deliver()
    assert sizes == [16, 16, 8]
    w.check_end()


def test_a_step_says_how_large_it_is() -> None:
    w = world(max_num_batched_tokens=16)
    w.submit(prompt(20), 3, ignore_eos=True)
    sizes = []
    while w.plan():
        sizes.append(w._in_flight[-1][0].size)
        w.deliver()
        if len(sizes) == 2:
            w.submit(prompt(2, 50), 1, ignore_eos=True)
    assert sizes == [
        StepSize(16, sum(range(1, 17))),
        StepSize(4, 17 + 18 + 19 + 20),
        StepSize(1 + 2, 21 + 1 + 2),
        StepSize(1, 22),
    ]


def test_prefill_takes_its_share_and_no_more_while_others_decode() -> None:
    w = world(max_prefill_tokens_per_step=5)
    first = w.submit(prompt(4), 20, ignore_eos=True)
    plan(w)
    w.deliver()
    w.submit(prompt(40, 3), 1)
    step = plan(w)
    assert [size for _, size in chunks_of(step)] == [5]
    assert len(step.rows) == 1, "the decoding sequence goes on in the same step"
    w.cancel(first)
    w.deliver()
    assert [size for _, size in chunks_of(plan(w))] == [35], "nothing decodes any more: the whole budget is free"


def test_waiting_sequences_go_by_priority_then_arrival() -> None:
    w = world(max_num_seqs=1)
    running = w.submit(prompt(2), 1, ignore_eos=True)
    plan(w)
    late = w.submit(prompt(2), 1, ignore_eos=True)
    urgent = w.submit(prompt(2), 1, ignore_eos=True, priority=5)
    later = w.submit(prompt(2), 1, ignore_eos=True)
    order = [running]
    while True:
        w.deliver()
        for handle, expectation in w.sequences.items():
            if expectation.ended and handle not in order:
                order.append(handle)
        if not w.plan():
            break
    assert order == [running, urgent, late, later]


def test_out_of_blocks_preempts_the_least_important_and_loses_nothing() -> None:
    w = world(num_blocks=8, max_num_seqs=2)
    old = w.submit(prompt(8), 20, ignore_eos=True)
    young = w.submit(prompt(8, 40), 20, ignore_eos=True)
    while w.scheduler.counters.preemptions == 0:
        plan(w)
        w.deliver()
    assert w.scheduler.num_waiting == 1
    w.drain()
    assert w.sequences[old].got == w.sequences[old].output
    assert w.sequences[young].got == w.sequences[young].output
    w.check_end()


def test_priority_protects_the_younger_from_preemption() -> None:
    w = world(num_blocks=8, max_num_seqs=2)
    w.submit(prompt(8), 20, ignore_eos=True)
    vip = w.submit(prompt(8, 40), 20, ignore_eos=True, priority=1)
    w.drain()
    assert w.scheduler.counters.preemptions > 0
    assert list(w.sequences)[1] == vip
    w.check_end()


def test_requests_that_arrive_in_the_same_step_share_their_prefix() -> None:
    w = world()
    w.submit(prompt(18), 4, ignore_eos=True)
    w.submit(prompt(18), 4, ignore_eos=True)
    step = plan(w)
    assert [admit.num_cached for admit in step.plan.admit] == [0, 16]
    assert [size for _, size in chunks_of(step)] == [18, 2]
    w.drain()
    w.check_end()


def test_a_full_hit_recomputes_only_its_last_token_and_writes_nothing_shared() -> None:
    w = world()
    w.submit(prompt(16), 1, ignore_eos=True)
    w.drain()
    w.submit(prompt(16), 3, ignore_eos=True)
    step = plan(w)
    (admit,) = step.plan.admit
    assert (admit.prompt_len, admit.num_cached, unpack(admit.tokens).tolist()) == (16, 16, prompt(16))
    assert chunks_of(step) == [[admit.slot, 1]]
    w.drain()
    w.check_end()


def test_another_salt_shares_nothing() -> None:
    w = world()
    w.submit(prompt(16), 1, ignore_eos=True)
    w.drain()
    w.submit(prompt(16), 1, ignore_eos=True, salt=b"tenant b")
    assert plan(w).plan.admit[0].num_cached == 0


def test_output_is_cached_for_the_next_turn_of_a_conversation() -> None:
    w = world()
    first = w.submit(prompt(8), 8, ignore_eos=True)
    w.drain()
    w.submit(w.sequences[first].prompt + w.sequences[first].output + [5], 1, ignore_eos=True)
    # The last token of the output was never computed, so its block is not cached.
    assert plan(w).plan.admit[0].num_cached == 12


def test_flushing_forgets_what_nobody_holds() -> None:
    w = world()
    w.submit(prompt(16), 1, ignore_eos=True)
    w.drain()
    assert w.scheduler.blocks.num_cached == 4
    assert w.scheduler.flush_cache() == 4
    assert w.scheduler.blocks.num_cached == 0
    w.submit(prompt(16), 1, ignore_eos=True)
    assert plan(w).plan.admit[0].num_cached == 0


def test_eviction_takes_a_sequence_s_tail_first() -> None:
    w = world(num_blocks=6)
    w.submit(prompt(16), 1, ignore_eos=True)
    w.drain()
    w.submit(prompt(12, 50), 1, ignore_eos=True)  # three blocks: the two never used, and one cached
    w.drain()
    w.submit(prompt(16), 1, ignore_eos=True)
    assert plan(w).plan.admit[0].num_cached == 12


def test_a_length_limit_is_known_in_advance_and_wastes_no_step() -> None:
    w = world(depth=2)
    w.submit(prompt(4), 3, ignore_eos=True)
    assert w.drain() == 3


def test_an_end_of_sequence_token_is_noticed_a_step_late_and_its_extra_token_dropped() -> None:
    w = world(depth=2)
    handle = next(h for h in iter(lambda: w.submit(prompt(4), 200), None) if 1 < len(w.sequences[h].output) < 200)
    w.drain()
    assert w.sequences[handle].got[-1] == 0
    assert w.sequences[handle].ended is FinishKind.EOS
    w.check_end()


@pytest.mark.parametrize("seed_steps", [1, 3])
def test_a_late_token_is_not_taken_for_the_slot_s_next_holder(seed_steps: int) -> None:
    w = world(depth=2, max_num_seqs=1)
    gone = w.submit(prompt(4), 50, ignore_eos=True)
    for _ in range(seed_steps):
        plan(w)
        w.deliver()
    plan(w)  # in flight for the first when the second takes the slot
    w.cancel(gone)
    heir = w.submit(prompt(4, 30), 5, ignore_eos=True)
    plan(w)
    w.drain()
    assert w.sequences[heir].got == w.sequences[heir].output
    w.check_end()


def test_a_stop_token_ends_an_output_and_is_part_of_it() -> None:
    w = world()
    probe = w.submit(prompt(4), 10, ignore_eos=True)
    stop = w.sequences[probe].output[3]
    w.cancel(probe)
    w.sequences.clear()
    handle = w.submit(prompt(4), 10, ignore_eos=True, stop_token_ids=(stop,))
    w.drain()
    assert w.sequences[handle].got[-1] == stop
    assert w.sequences[handle].ended is FinishKind.STOP_TOKEN


@pytest.mark.parametrize(
    ("length", "max_tokens", "changes", "names"),
    [
        (250, 7, {}, ("250", "7", "256")),
        (100, 30, {"num_blocks": 32}, ("130", "33", "32")),
    ],
)
def test_what_can_never_fit_is_refused_with_the_numbers(
    length: int, max_tokens: int, changes: dict[str, int], names: tuple[str, ...]
) -> None:
    w = world(**changes)
    w.submit(prompt(length), max_tokens)
    (rejection,) = w.rejections
    assert rejection.kind is RejectKind.INVALID
    assert rejection.field == "stopping.max_tokens"
    assert all(name in rejection.message for name in names), rejection.message


def test_the_largest_sequence_that_fits_the_memory_runs() -> None:
    w = world(num_blocks=8)
    w.submit(prompt(30), 3, ignore_eos=True)
    w.drain()
    w.check_end()


def test_a_full_queue_refuses_with_a_delay() -> None:
    w = world(max_num_seqs=1)
    for _ in range(9):
        w.submit(prompt(4), 5)
    (rejection,) = w.rejections
    assert rejection.kind is RejectKind.QUEUE_FULL
    assert rejection.retry_after_s


def test_the_queue_is_bounded_in_tokens_too_and_the_refusal_has_the_numbers() -> None:
    w = world(max_num_seqs=1, max_queued_tokens=100)
    long = w.submit(prompt(150), 1)
    assert not w.rejections, "where nothing waits, any length is let in"
    w.cancel(long)
    w.submit(prompt(60), 1, request_id="a")
    w.submit(prompt(40), 1, request_id="b")
    w.submit(prompt(1), 1, request_id="c")
    (rejection,) = w.rejections
    assert rejection.kind is RejectKind.QUEUE_FULL
    assert rejection.message == (
        "100 prompt tokens wait already; with the 1 of this one they are over the limit of 100 (max_queued_tokens)"
    )
    w.drain()
    w.submit(prompt(100), 1)
    assert len(w.rejections) == 1
    w.check()


def test_all_outputs_of_a_request_come_in_with_its_first() -> None:
    w = world(max_num_seqs=1, max_queued_tokens=100)
    for _ in range(4):
        w.submit(prompt(40), 1, request_id="of four", tenant="a")
    assert not w.rejections
    w.submit(prompt(1), 1, request_id="another", tenant="a")
    assert len(w.rejections) == 1
    w.submit(prompt(90), 1, request_id="whoever has nothing here", tenant="b")
    assert len(w.rejections) == 1
    w.drain()
    w.check_end()


def test_a_tenant_may_have_half_of_the_queue() -> None:
    w = world(max_num_seqs=1, max_queued=8, max_queued_tokens=100)
    for _ in range(5):
        w.submit(prompt(2), 1, tenant="a")
    w.submit(prompt(51), 1, tenant="b", request_id="1")
    w.submit(prompt(1), 1, tenant="b", request_id="2")
    w.submit(prompt(1), 1, tenant="c")
    w.check()
    assert [rejection.message for rejection in w.rejections] == [
        "4 sequences of tenant a wait already; a tenant's limit is 4, half of max_queued",
        "51 prompt tokens of tenant b wait already; with the 1 of this one they are over a tenant's limit of 50, half "
        "of max_queued_tokens",
    ]


def test_waiting_longer_than_wished_is_a_rejection_and_running_is_not_waiting() -> None:
    w = world(max_num_seqs=1)
    running = w.submit(prompt(4), 5, ignore_eos=True, max_queue_time_s=1.0)
    plan(w)
    waiting = w.submit(prompt(4), 5, ignore_eos=True, max_queue_time_s=1.0)
    w.expire(2.0)
    assert [rejection.handle for rejection in w.rejections] == [waiting]
    w.drain()
    assert w.sequences[running].ended is FinishKind.LENGTH


def test_tokens_already_given_count_and_are_not_repeated() -> None:
    w = world()
    handle = w.submit(prompt(5), 10, ignore_eos=True, generated=6)
    w.drain()
    assert w.sequences[handle].got == w.sequences[handle].output
    whole = w.submit(prompt(5), 10, ignore_eos=True, generated=10)
    assert w.sequences[whole].ended is FinishKind.LENGTH, "nothing is left to generate"


def test_a_row_without_numbers_fails_alone() -> None:
    w = world()
    bad = w.submit(prompt(4), 5, ignore_eos=True)
    good = w.submit(prompt(4, 30), 5, ignore_eos=True)
    step = plan(w)
    _, tokens = w._in_flight.pop()
    tokens = tokens.copy()
    tokens[0] = NO_TOKEN
    for failures in ({}, {1: "x"}, {0: "x", 1: "y"}):
        with pytest.raises(ValueError, match=r"rows \[0\] of step 0 have no token"):
            w.scheduler.apply(step, StepRows(tokens, {row: RowFailure(row, why) for row, why in failures.items()}))
    outcome = w.scheduler.apply(step, StepRows(tokens, {0: RowFailure(0, "why")}))
    assert [(f.frontend, f.message.handle, f.message.kind, f.message.reason) for f in outcome.finishes] == [
        (FRONTEND, bad, FinishKind.FAILED, "why")
    ]
    assert outcome.handles.tolist() == [good]
    w.submit(prompt(4), 5, ignore_eos=True)
    assert w.scheduler.plan(0, 99, 0.0).plan.admit[0].num_cached == 0, "nobody finds what it computed"


def test_a_result_that_cannot_be_this_step_s_changes_nothing() -> None:
    w = world()
    w.submit(prompt(4), 5, ignore_eos=True)
    step = plan(w)
    with pytest.raises(ValueError, match="samples 1 rows and 2 tokens"):
        w.scheduler.apply(step, StepRows(unpack(pack([1, 2]))))
    with pytest.raises(ValueError, match="outside 0 to 100"):
        w.scheduler.apply(step, StepRows(unpack(pack([101]))))
    w.drain()
    w.check_end()


@pytest.mark.parametrize(
    "change",
    [{"prompt": pack([101])}, {"prompt": pack([-1])}, {"prompt": b""}, {"prompt": b"abc"}, {"max_tokens": 0}],
)
def test_a_submission_that_no_frontend_sends_is_a_value_error(change: dict[str, object]) -> None:
    w = world()
    message = Submit(1, "r", pack([1]), b"", SamplingParams(0, 0, 1, 1), 5, [], False, 0, b"", None)
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    with pytest.raises(ValueError, match=r"."):
        w.scheduler.submit(FRONTEND, Submit(**{**fields, **change}), 0.0)
    check_integrity(w.scheduler)


def test_a_steady_plan_carries_next_to_nothing() -> None:
    w = world(max_num_seqs=64, num_blocks=2000, max_model_len=256, max_queued=64)
    for start in range(8):
        w.submit(prompt(5, start + 1), 100, ignore_eos=True)
    for _ in range(3):
        plan(w)
        w.deliver()
    quiet = plan(w).plan
    assert (quiet.release, quiet.admit, quiet.grow, quiet.chunks, quiet.idle) == (b"", [], b"", b"", b"")


def test_a_plan_admits_so_many_ids_and_the_next_one_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admitter, "MAX_ADMITTED_IDS", 10)
    w = world(depth=2)
    for start in (1, 20, 40):
        w.submit(prompt(4, start), 3, ignore_eos=True)
    assert [len(plan(w).plan.admit) for _ in range(2)] == [2, 1]
    w.drain()
    w.submit(prompt(16, 60), 1, ignore_eos=True)
    assert len(plan(w).plan.admit) == 1, "the first goes whatever its length"
    w.drain()
    w.check_end()


@pytest.mark.parametrize("counts", [[2], [1, 2], [1, 1, 1], [1], [0, 1]])
def test_results_of_other_than_one_token_a_row_are_refused(counts: list[int]) -> None:
    tokens = pack([5, 6])
    assert rows_of(StepResult(0, 0, tokens, 1, 1, pack([1, 1]))).tokens.tolist() == [5, 6]
    with pytest.raises(ValueError, match="other numbers of tokens than one"):
        rows_of(StepResult(0, 0, tokens, 1, 1, pack(counts)))


def test_a_request_id_is_its_tenants_own() -> None:
    w = world()
    red, blue, red_again, other = (
        w.submit([1, 2, 3], max_tokens=9, request_id=request_id, tenant=tenant)
        for request_id, tenant in (("a", "red"), ("a", "blue"), ("a", "red"), ("b", "red"))
    )
    w.plan()  # some run and some wait

    def ended() -> set[int]:
        return {handle for handle in (red, blue, red_again, other) if w.sequences[handle].ended is not None}

    w.abort_request("a", "nobody")
    assert ended() == set()
    w.abort_request("a", "red")
    assert ended() == {red, red_again}
    w.abort_request("a", "")  # the tenant of a server that has but one, and no other's
    assert ended() == {red, red_again}
    w.abort_request("a")
    assert ended() == {red, blue, red_again}
    w.drain()
    w.check_end()
