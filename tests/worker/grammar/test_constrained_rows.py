"""Constrained rows: outputs of a random model that are what their grammars say, on a CPU and on a device's stand-in."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import llguidance
import msgspec
import numpy as np
import pytest
import torch
from support.device_runner import device_decoder, make_runner, plain_decoder, run, tiny_config
from support.tiny_tokenizer import make_spec, make_tokenizer
from support.worker_plans import PlanMaker

from pagewire.wire.columns import pack, unpack
from pagewire.wire.logits import LogitControls
from pagewire.wire.model import ModelSpec
from pagewire.wire.plan import NO_TOKEN, Admit, StepPlan, StepResult
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.cpu.runner import CpuRunner
from pagewire.worker.grammar.constrained_rows import ConstrainedRows
from pagewire.worker.immediate import step_result
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.slots.columns import SlotLimits

VOCAB_SIZE = 384
CONFIG = tiny_config(VOCAB_SIZE)
LIMITS = SlotLimits(
    max_num_seqs=8, max_model_len=128, max_num_batched_tokens=256, block_size=128, num_blocks=8, vocab_size=VOCAB_SIZE
)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "count": {"enum": [1, 22, 333]}},
    "required": ["name", "count"],
    "additionalProperties": False,
}
TIGHT = {"whitespace_flexible": False}


def is_of_schema(text: str) -> bool:
    value = json.loads(text)
    return (
        list(value) == ["name", "count"]
        and isinstance(value["name"], str)
        and len(value["name"]) <= 5
        and value["count"] in (1, 22, 333)
    )


def matches(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(pattern, text) is not None


GRAMMARS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "regex": (llguidance.LLMatcher.grammar_from_regex("[a-c]{2,6}-(ja|nein)"), matches("[a-c]{2,6}-(ja|nein)")),
    "schema": (llguidance.LLMatcher.grammar_from_json_schema(SCHEMA, TIGHT), is_of_schema),
    "umlauts": (llguidance.LLMatcher.grammar_from_regex("[äöüß你好]{3,5}"), matches("[äöüß你好]{3,5}")),
    "lark": (
        llguidance.LLMatcher.grammar_from_lark('start: sum\nsum: N ("+" N)~1..3\nN: /[0-9]{1,2}/'),
        matches(r"[0-9]{1,2}(\+[0-9]{1,2}){1,3}"),
    ),
}


class Runner(Protocol):
    def __call__(self, plan: StepPlan) -> StepResult: ...


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return plain_decoder(CONFIG)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return make_spec(tmp_path_factory.mktemp("spec"))


@pytest.fixture(params=["cpu", "device", "device, eager"])
def new_runner(request: pytest.FixtureRequest, decoder: Decoder, spec: ModelSpec) -> Callable[[], Runner]:
    """Makes runners of one kind, each of which has no past."""

    def new() -> Runner:
        kv = KVCache(CONFIG, LIMITS.num_blocks, LIMITS.block_size, torch.float32)
        if request.param != "cpu":
            eager = request.param.endswith("eager")
            runner = make_runner(device_decoder(decoder, LIMITS), kv, LIMITS, eager=eager, spec=spec)
            return lambda plan: run(runner, plan)
        cpu = CpuRunner(decoder, kv, LIMITS, spec=spec)
        cpu.begin(1)
        return lambda plan: step_result(plan.epoch, plan.step_id, cpu.run(plan), busy_us=0, idle_us=0)

    return new


def constrained(slot: int, grammar: str, ids: list[int], prompt_len: int | None = None, seed: int = 0) -> Admit:
    return Admit(
        slot=slot,
        tokens=pack(ids),
        prompt_len=len(ids) if prompt_len is None else prompt_len,
        num_cached=0,
        blocks=pack([slot]),
        sampling=SamplingParams(seed=seed),
        controls=LogitControls(grammar=grammar) if grammar else None,
    )


def generate(runner: Runner, admits: list[Admit], end: int, maker: PlanMaker, most: int = 100) -> list[list[int]]:
    """Outputs without the end, of sequences that are released as they end or after so many tokens."""
    outputs: dict[int, list[int]] = {admit.slot: [] for admit in admits}
    live, release = sorted(outputs), list[int]()
    chunks = [(admit.slot, len(unpack(admit.tokens))) for admit in admits]
    plan = maker.make(admits=admits, chunks=chunks)
    order = [admit.slot for admit in admits]
    while live:
        result = runner(plan)
        assert not result.failures
        for slot, token in zip(order, unpack(result.tokens).tolist(), strict=True):
            outputs[slot].append(token)
            if token == end or len(outputs[slot]) == most:
                release.append(slot)
        live = order = [slot for slot in live if slot not in release]
        plan, release = maker.make(release=release), []
    runner(plan)
    return [[token for token in outputs[admit.slot] if token != end] for admit in admits]


@pytest.mark.parametrize("name", GRAMMARS)
def test_outputs_are_what_the_grammar_says(name: str, new_runner: Callable[[], Runner], spec: ModelSpec) -> None:
    grammar, is_right = GRAMMARS[name]
    runner, maker, tokenizer = new_runner(), PlanMaker(), make_tokenizer()
    (end,) = spec.eos_token_ids
    for first in range(0, 24, 8):
        admits = [constrained(slot, grammar, [5, 6, 7], seed=first + slot) for slot in range(8)]
        for ids in generate(runner, admits, end, maker):
            assert is_right(tokenizer.decode(ids)), tokenizer.decode(ids)


def test_company_changes_nothing_and_is_not_changed(new_runner: Callable[[], Runner], spec: ModelSpec) -> None:
    """Four constrained in four ways beside four that are not, in slots that others have held before."""
    (end,) = spec.eos_token_ids
    grammars = [grammar for grammar, _ in GRAMMARS.values()]
    admits = [constrained(slot, ([*grammars, "", "", "", ""])[slot], [9, 8, slot], seed=slot) for slot in range(8)]
    alone = [generate(new_runner(), [admit], end, PlanMaker(), most=30)[0] for admit in admits]
    runner, maker = new_runner(), PlanMaker()
    assert generate(runner, admits, end, maker, most=30) == alone
    turned = [msgspec.structs.replace(admit, slot=7 - admit.slot, blocks=pack([7 - admit.slot])) for admit in admits]
    assert generate(runner, turned, end, maker, most=30) == alone


def test_an_admission_with_tokens_goes_on_where_it_was(new_runner: Callable[[], Runner], spec: ModelSpec) -> None:
    (end,) = spec.eos_token_ids
    for grammar, _ in GRAMMARS.values():
        whole = generate(new_runner(), [constrained(0, grammar, [4, 5], seed=3)], end, PlanMaker())[0]
        for cut in range(1, len(whole)):
            again = constrained(2, grammar, [4, 5, *whole[:cut]], prompt_len=2, seed=3)
            assert whole[:cut] + generate(new_runner(), [again], end, PlanMaker())[0] == whole


def test_a_grammar_that_cannot_go_on_is_its_row_s_end_alone(new_runner: Callable[[], Runner]) -> None:
    fine, _ = GRAMMARS["regex"]
    rows = [constrained(0, fine, [5]), constrained(1, "start: nothing_there", [5]), constrained(2, "", [5])]
    result = new_runner()(PlanMaker().make(admits=rows, chunks=[(slot, 1) for slot in range(3)]))
    tokens = unpack(result.tokens).tolist()
    assert [token == NO_TOKEN for token in tokens] == [False, True, False]
    assert [(each.row, each.by_request) for each in result.failures] == [(1, True)]
    assert "constraint cannot go on: " in result.failures[0].reason
    assert "\n" not in result.failures[0].reason


def test_other_controls_hold_as_well(new_runner: Callable[[], Runner], spec: ModelSpec) -> None:
    tokenizer = make_tokenizer()
    grammar, _ = GRAMMARS["regex"]
    banned = sorted(token for text, token in tokenizer.get_vocab().items() if "a" in text or "j" in text)
    admit = constrained(0, grammar, [5], seed=1)
    controls = LogitControls(grammar=grammar, banned_ids=pack(np.array(banned)))
    (ids,) = generate(
        new_runner(), [msgspec.structs.replace(admit, controls=controls)], spec.eos_token_ids[0], PlanMaker()
    )
    assert re.fullmatch("[bc]{2,6}-nein", tokenizer.decode(ids))


def test_a_tokenizer_that_cannot_be_read_fails_those_rows_alone(
    decoder: Decoder, spec: ModelSpec, tmp_path: Path
) -> None:
    kv = KVCache(CONFIG, LIMITS.num_blocks, LIMITS.block_size, torch.float32)
    broken = msgspec.structs.replace(spec, tokenizer_file=str(tmp_path / "nowhere.json"))
    runner = CpuRunner(decoder, kv, LIMITS, spec=broken)
    runner.begin(1)
    rows = [constrained(0, GRAMMARS["regex"][0], [5]), constrained(1, "", [5])]
    sampled = runner.run(PlanMaker().make(admits=rows, chunks=[(0, 1), (1, 1)]))
    assert [token == NO_TOKEN for token in sampled.tokens.tolist()] == [True, False]
    assert "tokenizer cannot be used" in sampled.failures[0].reason


def test_steps_launched_ahead_see_the_tokens_before(decoder: Decoder, spec: ModelSpec) -> None:
    """The plan of a step comes before the result of the one before; its mask does not."""
    grammar, is_right = GRAMMARS["lark"]
    (end,) = spec.eos_token_ids
    kv = KVCache(CONFIG, LIMITS.num_blocks, LIMITS.block_size, torch.float32)
    runner, maker = make_runner(device_decoder(decoder, LIMITS), kv, LIMITS, spec=spec), PlanMaker()
    ids: list[int] = []
    runner.submit(maker.make(admits=[constrained(0, grammar, [5], seed=2)], chunks=[(0, 1)]))
    while end not in ids:
        runner.submit(maker.make())
        while (result := runner.take()) is not None:
            ids += unpack(result.tokens).tolist()
    assert is_right(make_tokenizer().decode(ids[: ids.index(end)]))


class _Panic(BaseException):
    """As the library's panics come: no Exception."""


def test_a_panic_of_the_library_is_its_row_s_end_alone(
    decoder: Decoder, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    kv = KVCache(CONFIG, LIMITS.num_blocks, LIMITS.block_size, torch.float32)
    runner = CpuRunner(decoder, kv, LIMITS, spec=spec)
    runner.begin(1)
    whole = ConstrainedRows._masks

    def masks(rows: ConstrainedRows, tokenizer: object, matchers: list[object]) -> object:
        if bad in matchers:
            raise _Panic
        return whole(rows, tokenizer, matchers)  # type: ignore[arg-type]

    matcher_of = ConstrainedRows._matcher
    bad: object = None

    def matcher(rows: ConstrainedRows, tokenizer: object, step: object, row: int) -> object:
        nonlocal bad
        found = matcher_of(rows, tokenizer, step, row)  # type: ignore[arg-type]
        if row == 1:
            bad = found
        if row == 3:
            raise _Panic
        return found

    monkeypatch.setattr(ConstrainedRows, "_masks", masks)
    monkeypatch.setattr(ConstrainedRows, "_matcher", matcher)
    rows = [constrained(slot, GRAMMARS["regex"][0], [5]) for slot in range(4)]
    sampled = runner.run(PlanMaker().make(admits=rows, chunks=[(slot, 1) for slot in range(4)]))
    assert [token == NO_TOKEN for token in sampled.tokens.tolist()] == [False, True, False, True]
    assert [failure.row for failure in sampled.failures] == [1, 3]
