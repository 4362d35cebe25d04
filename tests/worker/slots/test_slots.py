"""Slot state against a straightforward model, and what happens to plans that must not run."""

from collections.abc import Callable
from dataclasses import fields, replace
from random import Random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.worker_plans import GREEDY, SMALL, ExpectedStep, PlanMaker, PlanModel, admit, block_table

from pagewire.wire.columns import ROW, pack, pack_pairs
from pagewire.wire.plan import NO_TOKEN, StepPlan
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.slots.plan_check import PlanError
from pagewire.worker.slots.state import Slots, Step

Rows = tuple[bytes, ...]


def snapshot(slots: Slots) -> dict[str, bytes]:
    """All of the columns' content."""
    return {field.name: getattr(slots.columns, field.name).tobytes() for field in fields(slots.columns)}


def check_step(step: Step, expected: ExpectedStep) -> None:
    assert list(zip(step.decode_slots.tolist(), step.decode_positions.tolist(), strict=True)) == expected.decodes
    assert [(c.slot, c.start, c.tokens.tolist(), c.ends_prefill) for c in step.chunks] == expected.chunks
    assert list(zip(step.sample_slots.tolist(), step.sample_positions.tolist(), strict=True)) == expected.samples


def check_columns(slots: Slots, model: PlanModel) -> None:
    columns, references = slots.columns, model.references()
    assert columns.references.tolist() == [references[block] for block in range(model.limits.num_blocks)]
    for slot in range(model.limits.max_num_seqs):
        sequence = model.sequences.get(slot)
        assert bool(columns.occupied[slot]) == (sequence is not None)
        blocks = sequence.blocks if sequence else []
        assert block_table(slots, slot) == blocks
        assert not columns.block_tables[slot, len(blocks) :].any()
        if sequence is None:
            assert columns.sampling[slot] == np.zeros((), ROW)
            numbers = [field.name for field in fields(columns)[:-1] if field.name != "sampling"]
            assert not any(getattr(columns, name)[slot].any() for name in numbers)
            continue
        assert columns.num_tokens[slot] == columns.prompt_len[slot] == len(sequence.ids)
        assert columns.token_ids[slot].tolist()[: len(sequence.ids)] == sequence.ids
        assert columns.num_computed[slot] == sequence.computed
        assert columns.cached_len[slot] == sequence.cached
        asked = columns.sampling[slot]
        assert asked["temperature"] == np.float32(sequence.sampling.temperature)
        assert asked["top_k"] == min(sequence.sampling.top_k, 2**31 - 1)  # the model's 2^31 keeps all, as that does
        assert asked["top_p"] == np.float32(sequence.sampling.top_p)
        assert asked["seed"] == sequence.sampling.seed


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), num_steps=st.integers(1, 25))
def test_slots_follow_a_stream_of_plans(seed: int, num_steps: int) -> None:
    model, slots = PlanModel(SMALL, Random(seed)), Slots(SMALL)
    slots.begin(1)
    for _ in range(num_steps):
        plan, expected = model.step()
        check_step(slots.apply(plan), expected)
        check_columns(slots, model)


Mutation = Callable[[StepPlan, PlanModel], StepPlan | None]
"""Makes a plan wrong, or None where this state offers no way to."""


def _append(field: str, values: list[int]) -> Mutation:
    return lambda plan, _: msgspec.structs.replace(plan, **{field: getattr(plan, field) + pack(values)})


def _admission(**changes: object) -> Mutation:
    def mutate(plan: StepPlan, _: PlanModel) -> StepPlan | None:
        if not plan.admit:
            return None
        return msgspec.structs.replace(plan, admit=[msgspec.structs.replace(plan.admit[0], **changes), *plan.admit[1:]])

    return mutate


def _sampling(**changes: object) -> Mutation:
    return _admission(sampling=msgspec.structs.replace(GREEDY, **changes))


def _for_slot(
    find: Callable[[PlanModel, StepPlan], list[int]], change: Callable[[StepPlan, int, PlanModel], StepPlan]
) -> Mutation:
    def mutate(plan: StepPlan, model: PlanModel) -> StepPlan | None:
        found = find(model, plan)
        return change(plan, found[0], model) if found else None

    return mutate


def _replace(plan: StepPlan, **changes: object) -> StepPlan:
    return msgspec.structs.replace(plan, **changes)


def _admitted(_: PlanModel, plan: StepPlan) -> list[int]:
    return [admission.slot for admission in plan.admit]


def _filled(_: PlanModel, plan: StepPlan) -> list[int]:
    """Slots that were empty when the step began and are not at its end."""
    released = np.frombuffer(plan.release, "<i4").tolist()
    return [admission.slot for admission in plan.admit if admission.slot not in released]


def _decoding(model: PlanModel, plan: StepPlan) -> list[int]:
    """Slots that were decoding when the step began and run in it."""
    listed = set(_admitted(model, plan)) | set(np.frombuffer(plan.chunks, "<i4")[::2].tolist())
    idle = set(np.frombuffer(plan.idle, "<i4").tolist())
    return [slot for slot, sequence in model.sequences.items() if sequence.decodes and slot not in listed | idle]


def _another_block(plan: StepPlan, model: PlanModel) -> StepPlan | None:
    """Gives a new slot a block of one that was there before."""
    held = [sequence.blocks[0] for slot, sequence in model.sequences.items() if slot not in _admitted(model, plan)]
    if not plan.admit or not held:
        return None
    return _admission(prompt_len=1, num_cached=0, tokens=pack([0]), blocks=pack(held[:1]))(plan, model)


MUTATIONS: dict[str, Mutation] = {
    "epoch": lambda plan, _: _replace(plan, epoch=plan.epoch + 1),
    "step repeated": lambda plan, _: _replace(plan, step_id=plan.step_id - 1),
    "step skipped": lambda plan, _: _replace(plan, step_id=plan.step_id + 1),
    **{
        f"torn {field}": lambda plan, _, field=field: _replace(plan, **{field: getattr(plan, field) + b"\0"})
        for field in ("release", "grow", "chunks", "idle")
    },
    "odd grow": _append("grow", [0]),
    "odd chunks": _append("chunks", [0]),
    "release of no slot": _append("release", [SMALL.max_num_seqs]),
    "release below zero": _append("release", [-1]),
    "release twice": lambda plan, _: _replace(plan, release=plan.release * 2) if plan.release else None,
    "release of an empty slot": _for_slot(_filled, lambda plan, slot, _: _replace(plan, release=pack([slot]))),
    "grow of no slot": _append("grow", [SMALL.max_num_seqs, 0]),
    "grow by no block": _for_slot(_decoding, lambda p, s, _: _replace(p, grow=p.grow + pack([s, SMALL.num_blocks]))),
    "grow by a block below zero": _for_slot(_decoding, lambda p, s, _: _replace(p, grow=p.grow + pack([s, -1]))),
    "grow by one's own block": _for_slot(
        _decoding, lambda p, s, m: _replace(p, grow=p.grow + pack([s, m.sequences[s].blocks[0]]))
    ),
    "grow past the table": _for_slot(
        _decoding, lambda p, s, _: _replace(p, grow=pack_pairs([(s, block) for block in range(SMALL.num_blocks)]))
    ),
    "no grow": lambda plan, _: _replace(plan, grow=b"") if plan.grow else None,
    "idle twice": lambda plan, _: _replace(plan, idle=plan.idle * 2) if plan.idle else None,
    "idle of no slot": _append("idle", [SMALL.max_num_seqs]),
    "idle of a prefilling slot": _for_slot(_admitted, lambda p, s, _: _replace(p, idle=p.idle + pack([s]))),
    "chunk of no slot": _append("chunks", [SMALL.max_num_seqs, 1]),
    "chunk of slot -1": _append("chunks", [-1, 1]),
    "chunk of a decoding slot": _for_slot(_decoding, lambda p, s, _: _replace(p, chunks=p.chunks + pack([s, 1]))),
    "chunk twice": lambda plan, _: _replace(plan, chunks=plan.chunks + plan.chunks[:8]) if plan.chunks else None,
    "empty chunk": lambda plan, _: (
        _replace(plan, chunks=plan.chunks[:4] + pack([0]) + plan.chunks[8:]) if plan.chunks else None
    ),
    "chunk too long": lambda plan, _: (
        _replace(plan, chunks=plan.chunks[:4] + pack([25]) + plan.chunks[8:]) if plan.chunks else None
    ),
    "admission to no slot": _admission(slot=SMALL.max_num_seqs),
    "admission below zero": _admission(slot=-1),
    "admission twice": lambda plan, _: _replace(plan, admit=plan.admit + plan.admit[:1]) if plan.admit else None,
    "admission to a held slot": _for_slot(
        _decoding, lambda plan, slot, _: _replace(plan, admit=[*plan.admit, admit(slot, [1], [0])])
    ),
    "no tokens": _admission(tokens=b"", prompt_len=0, num_cached=0),
    "too many tokens": _admission(tokens=pack([0] * 41), num_cached=0),
    "torn tokens": _admission(tokens=b"123"),
    "tokens missing": _admission(tokens=b""),
    "more cached than known": _admission(num_cached=5, tokens=pack([1, 2, 3, 4]), prompt_len=4),
    "no prompt": _admission(prompt_len=0),
    "a prompt longer than what is known": _admission(prompt_len=41),
    "cached below zero": _admission(num_cached=-1),
    "token id too large": _admission(prompt_len=1, num_cached=0, tokens=pack([SMALL.vocab_size])),
    "token id below zero": _admission(prompt_len=1, num_cached=0, tokens=pack([-1])),
    "no blocks": _admission(blocks=b""),
    "torn blocks": _admission(blocks=b"12345"),
    "block id too large": _admission(prompt_len=1, num_cached=0, tokens=pack([0]), blocks=pack([SMALL.num_blocks])),
    "block id below zero": _admission(prompt_len=1, num_cached=0, tokens=pack([0]), blocks=pack([-1])),
    "too many blocks": _admission(prompt_len=1, num_cached=0, tokens=pack([0]), blocks=pack(range(11))),
    "a block twice": lambda plan, _: (
        _admission(prompt_len=1, num_cached=0, tokens=pack([0]), blocks=plan.admit[0].blocks[:4] * 2)(plan, _)
        if plan.admit
        else None
    ),
    "another's block": _another_block,
    "temperature below zero": _sampling(temperature=-0.5),
    "temperature infinite": _sampling(temperature=float("inf")),
    "temperature too large for float32": _sampling(temperature=1e300),
    "temperature no number": _sampling(temperature=float("nan")),
    "top_k below zero": _sampling(top_k=-1),
    "top_p zero": _sampling(top_p=0.0),
    "top_p above one": _sampling(top_p=1.5),
    "top_p no number": _sampling(top_p=float("nan")),
    "seed below zero": _sampling(seed=-1),
    "seed too large": _sampling(seed=2**64),
}


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), num_steps=st.integers(1, 12))
def test_a_wrong_plan_changes_nothing(seed: int, num_steps: int) -> None:
    model, slots = PlanModel(SMALL, Random(seed)), Slots(SMALL)
    slots.begin(1)
    for _ in range(num_steps):
        plan, expected = model.step()
        before = snapshot(slots)
        for name, mutate in MUTATIONS.items():
            wrong = mutate(plan, model)
            if wrong is None:
                continue
            with pytest.raises(PlanError):
                print(name, slots.apply(wrong))  # reached only where a wrong plan was accepted
            assert snapshot(slots) == before, name
        check_step(slots.apply(plan), expected)


def test_every_mutation_is_tried() -> None:
    """The property above skips a mutation where the state offers no way to it; here each finds one."""
    untried = dict(MUTATIONS)
    random = Random(0)
    for _ in range(20):
        model, slots = PlanModel(SMALL, random), Slots(SMALL)
        slots.begin(1)
        for _ in range(30):
            plan, _ = model.step()
            for name, mutate in list(untried.items()):
                wrong = mutate(plan, model)
                if wrong is not None:
                    with pytest.raises(PlanError):
                        slots.apply(wrong)
                    del untried[name]
            slots.apply(plan)
    assert not untried


def test_a_fully_cached_prompt_computes_its_last_token() -> None:
    slots, maker = Slots(SMALL), PlanMaker()
    slots.begin(1)
    slots.apply(maker.make(admits=[admit(0, list(range(8)), [3, 4])], chunks=[(0, 8)]))
    step = slots.apply(maker.make(admits=[admit(1, list(range(8)), [3, 4], cached=8)], chunks=[(1, 1)], idle=[0]))
    assert [(chunk.start, chunk.tokens.tolist(), chunk.ends_prefill) for chunk in step.chunks] == [(7, [7], True)]
    assert slots.columns.cached_len[1] == 8
    assert slots.columns.references[[3, 4]].tolist() == [2, 2]


def test_one_uncached_token_is_not_taken_for_a_fully_cached_prompt() -> None:
    slots, maker = Slots(SMALL), PlanMaker()
    slots.begin(1)
    step = slots.apply(maker.make(admits=[admit(1, list(range(9)), [3, 4, 5], cached=8)], chunks=[(1, 1)]))
    assert [(chunk.start, chunk.tokens.tolist()) for chunk in step.chunks] == [(8, [8])]


def test_blocks_shared_within_one_plan_must_be_given_before_they_are_shared() -> None:
    first = admit(0, list(range(8)), [3, 4])
    second = admit(1, [*range(8), 9], [3, 4, 5], cached=8)
    slots = Slots(SMALL)
    slots.begin(1)
    with pytest.raises(PlanError, match="block 3 to be written"):
        slots.apply(PlanMaker().make(admits=[second, first]))
    slots.apply(PlanMaker().make(admits=[first, second]))


def test_a_released_block_may_be_given_in_the_same_plan() -> None:
    slots, maker = Slots(SMALL), PlanMaker()
    slots.begin(1)
    slots.apply(maker.make(admits=[admit(0, [1], [3])], chunks=[(0, 1)]))
    slots.apply(maker.make(release=[0], admits=[admit(2, [1], [3])]))
    assert block_table(slots, 2) == [3]
    assert slots.columns.references[3] == 1


def test_a_released_block_that_another_slot_reads_may_not() -> None:
    slots, maker = Slots(SMALL), PlanMaker()
    slots.begin(1)
    slots.apply(maker.make(admits=[admit(0, list(range(4)), [3]), admit(1, list(range(5)), [3, 4], cached=4)]))
    with pytest.raises(PlanError, match="block 3 to be written, which stands in another slot's table"):
        slots.apply(maker.make(release=[0], admits=[admit(2, [1], [3])]))


def test_the_token_budget_is_a_limit() -> None:
    slots = Slots(replace(SMALL, max_num_batched_tokens=7))
    slots.begin(1)
    with pytest.raises(PlanError, match="the step runs 8 tokens; max_num_batched_tokens is 7"):
        slots.apply(PlanMaker().make(admits=[admit(0, list(range(8)), [0, 1])], chunks=[(0, 8)]))


def test_decoding_stops_at_max_model_len() -> None:
    slots, maker = Slots(replace(SMALL, max_model_len=5)), PlanMaker()
    slots.begin(1)
    slots.apply(maker.make(admits=[admit(0, [1, 2, 3, 4], [0, 1])], chunks=[(0, 4)]))
    assert slots.apply(maker.make()).decode_positions.tolist() == [4]
    with pytest.raises(PlanError, match="slot 0 would decode at position 5, which is max_model_len"):
        slots.apply(maker.make())


def test_plans_need_an_epoch() -> None:
    slots = Slots(SMALL)
    with pytest.raises(PlanError, match="before any Begin"):
        slots.apply(PlanMaker().make())
    slots.begin(1)
    slots.apply(PlanMaker().make(admits=[admit(0, [1], [0])]))
    slots.begin(2)
    assert not slots.columns.occupied.any()
    assert not slots.columns.references.any()
    slots.apply(PlanMaker(epoch=2).make(admits=[admit(0, [1], [0])]))
    slots.end_epoch()
    with pytest.raises(PlanError, match="before any Begin"):
        slots.apply(PlanMaker(epoch=2).make())


def test_nobody_else_can_write_the_columns() -> None:
    slots = Slots(SMALL)
    with pytest.raises(ValueError, match="read-only"):
        slots.columns.num_computed[0] = 1


def test_a_tiny_temperature_is_greedy_and_a_huge_top_k_keeps_all() -> None:
    slots = Slots(SMALL)
    slots.begin(1)
    sampling = SamplingParams(temperature=1e-60, top_k=2**32 - 1, top_p=1.0, seed=2**64 - 1)
    slots.apply(PlanMaker().make(admits=[admit(0, [1], [0], sampling=sampling)]))
    assert slots.columns.sampling["temperature"][0] == 0
    assert slots.columns.sampling["top_k"][0] == 2**31 - 1
    assert slots.columns.sampling["seed"][0] == 2**64 - 1


def test_a_result_that_comes_late_is_not_the_next_holder_s() -> None:
    slots, maker = Slots(SMALL), PlanMaker()
    slots.begin(1)
    first = slots.apply(maker.make(admits=[admit(0, [5, 6], [0]), admit(1, [8], [1])], chunks=[(0, 2), (1, 1)]))
    second = slots.apply(maker.make(release=[0, 1], admits=[admit(0, [9], [2])], chunks=[(0, 1)]))
    slots.record(first, np.array([50, 80], np.int32))
    assert not slots.columns.token_ids[1].any()
    slots.record(second, np.array([NO_TOKEN], np.int32))
    third = slots.apply(maker.make())
    slots.record(third, np.array([77], np.int32))
    assert slots.columns.token_ids[0, :4].tolist() == [9, 0, 77, 0]
