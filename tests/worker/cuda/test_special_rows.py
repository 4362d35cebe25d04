"""Special rows on a device, replayed on the CPU, against the plain runner: logits that are changed, log-probabilities,
scored prompts."""

from random import Random

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.device_runner import device_decoder, make_runner, plain_decoder, run, tiny_config
from support.drawn_admits import DrawnAdmits
from support.same_results import assert_same
from support.worker_plans import SMALL, PlanMaker, PlanModel, admit

from pagewire.wire.columns import pack, unpack
from pagewire.wire.logits import LogitControls, LogprobsRequest
from pagewire.wire.plan import NO_TOKEN, NOT_NUMBERS, NOTHING_LEFT, StepPlan
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.cpu.runner import CpuRunner
from pagewire.worker.cuda import special_work
from pagewire.worker.kernels.controls import ControlLayout
from pagewire.worker.kernels.workspaces import MAX_CHANGED_ROWS
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.slots.columns import SlotLimits
from pagewire.worker.slots.state import Slots

CONFIG = tiny_config(SMALL.vocab_size)
WIDE = SlotLimits(
    max_num_seqs=75, max_model_len=64, max_num_batched_tokens=150, block_size=4, num_blocks=1200, vocab_size=100
)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return plain_decoder(CONFIG)


def make_kv(limits: SlotLimits) -> KVCache:
    return KVCache(CONFIG, limits.num_blocks, limits.block_size, torch.float32)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), num_steps=st.integers(1, 25), eager=st.booleans())
def test_random_plans(decoder: Decoder, seed: int, num_steps: int, eager: bool) -> None:
    plans = PlanModel(SMALL, Random(seed), DrawnAdmits(np.random.default_rng(seed), SMALL.vocab_size))
    plain = CpuRunner(decoder, make_kv(SMALL), SMALL)
    plain.begin(1)
    runner = make_runner(device_decoder(decoder, SMALL), make_kv(SMALL), SMALL, eager=eager)
    for _ in range(num_steps):
        plan, _ = plans.step()
        assert_same(run(runner, plan), plain.run(plan))


def test_more_rows_than_are_changed_at_once(decoder: Decoder) -> None:
    """And more that report than at once."""
    assert WIDE.max_num_seqs > 2 * MAX_CHANGED_ROWS
    drawn = DrawnAdmits(np.random.default_rng(3), WIDE.vocab_size)
    plain = CpuRunner(decoder, make_kv(WIDE), WIDE)
    plain.begin(1)
    runner, maker = make_runner(device_decoder(decoder, WIDE), make_kv(WIDE), WIDE), PlanMaker()
    admissions = []
    for slot in range(WIDE.max_num_seqs):
        changed = drawn.draw("repetition" if slot % 8 else "presence", slot, ids=[slot, 1], seed=slot)
        logprobs = LogprobsRequest(3, pack([slot]), is_processed=slot % 9 == 0)
        blocks = pack(range(16 * slot, 16 * slot + 16))
        admissions.append(msgspec.structs.replace(changed, blocks=blocks, logprobs=logprobs))
    plans = [maker.make(admits=admissions, chunks=[(slot, 2) for slot in range(WIDE.max_num_seqs)])]
    plans += [maker.make(idle=[5] if index % 2 else []) for index in range(6)]
    for plan in plans:
        result = run(runner, plan)
        assert_same(result, plain.run(plan))
        assert len(result.logprobs) >= WIDE.max_num_seqs - 1


def test_steps_that_are_launched_ahead(decoder: Decoder) -> None:
    """What a step was asked is what its plan said, though the slot has another holder by the time it is read."""
    plain = CpuRunner(decoder, make_kv(SMALL), SMALL)
    plain.begin(1)
    runner, maker = make_runner(device_decoder(decoder, SMALL), make_kv(SMALL), SMALL), PlanMaker()
    drawn = DrawnAdmits(np.random.default_rng(4), SMALL.vocab_size)

    def plan(index: int) -> StepPlan:
        ids = [index % 7, 3, 5]
        admission = drawn.draw("everything", 0, ids=ids, temperature=0.0)
        asked = LogprobsRequest(index % 5, pack([index]), is_processed=index % 2 == 0)
        admission = msgspec.structs.replace(admission, prompt_len=3, prompt_logprobs=index % 3, logprobs=asked)
        release = [0] if index else []
        return maker.make(release=release, admits=[admission], chunks=[(0, 3)])

    plans = [plan(index) for index in range(8)]
    expected = [plain.run(each) for each in plans]
    runner.submit(plans[0])
    for index in range(1, len(plans)):
        runner.submit(plans[index])
        result = runner.take()
        assert result is not None
        assert_same(result, expected[index - 1])


class BadModel:
    """Answers with zeros, one of them NaN where the token is 66."""

    def forward(self, batch: Batch, kv: KVCache) -> torch.Tensor:
        ids = batch.input_ids_T[batch.sample_rows_S]
        logits = torch.zeros(len(ids), SMALL.vocab_size)
        logits[ids == 66, 3] = float("nan")
        return logits


def test_rows_without_a_token_say_why_and_harm_no_other() -> None:
    runner, maker = make_runner(BadModel(), make_kv(SMALL), SMALL), PlanMaker()
    controls = LogitControls(allowed_ids=pack([7]), banned_ids=pack([7]))
    biased = LogitControls(bias_ids=pack([9]), bias_values=np.float32(5).tobytes(), banned_ids=pack([3]))
    asked = LogprobsRequest(1)

    def row(slot: int, token: int, controls: LogitControls | None) -> object:
        each = admit(slot, [token], [slot])
        return msgspec.structs.replace(each, controls=controls, logprobs=asked)

    rows = [row(0, 5, controls), row(1, 66, biased), row(2, 66, None), row(3, 5, biased), row(4, 5, None)]
    result = run(runner, maker.make(admits=rows, chunks=[(slot, 1) for slot in range(5)]))
    assert unpack(result.tokens).tolist() == [NO_TOKEN, NO_TOKEN, NO_TOKEN, 9, 0]
    assert [(each.row, each.reason, each.by_request) for each in result.failures] == [
        (0, NOTHING_LEFT, True),
        (1, NOT_NUMBERS, False),
        (2, NOT_NUMBERS, False),
    ]
    assert [each.row for each in result.logprobs] == [3, 4]


def test_a_prompt_whose_logits_are_no_numbers_has_scores_that_are_none() -> None:
    runner, maker = make_runner(BadModel(), make_kv(SMALL), SMALL), PlanMaker()
    scored = msgspec.structs.replace(admit(0, [1, 66, 2, 3], [0]), prompt_logprobs=2)
    (scores,) = run(runner, maker.make(admits=[scored], chunks=[(0, 4)])).prompt_logprobs
    chosen = torch.frombuffer(bytearray(scores.chosen), dtype=torch.float32)
    assert chosen.isnan().tolist() == [False, True, False]
    assert unpack(scores.ids).tolist() == [0, 1, NO_TOKEN, NO_TOKEN, 0, 1]


def test_an_admission_that_cannot_be_taken_over_is_its_own_end(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, told = ControlLayout.row_of, []

    def row_of(layout: ControlLayout, admission: object) -> object:
        if admission.slot == 1:  # type: ignore[attr-defined]
            raise RuntimeError("broken")
        return whole(layout, admission)  # type: ignore[arg-type]

    monkeypatch.setattr(ControlLayout, "row_of", row_of)
    runner = make_runner(BadModel(), make_kv(SMALL), SMALL, on_error=lambda what, error: told.append(error))
    maker = PlanMaker()
    penalized = SamplingParams(temperature=0, presence_penalty=1)
    admissions = [admit(slot, [5], [slot], sampling=penalized) for slot in range(3)]
    result = run(runner, maker.make(admits=admissions, chunks=[(slot, 1) for slot in range(3)]))
    assert unpack(result.tokens).tolist() == [0, NO_TOKEN, 0]
    assert [(each.row, each.by_request) for each in result.failures] == [(1, False)]
    assert "RuntimeError" in result.failures[0].reason
    assert len(told) == 1
    plain = admit(1, [5], [1])
    assert unpack(run(runner, maker.make(release=[1], admits=[plain], chunks=[(1, 1)])).tokens).tolist() == [1, 1, 0]


def test_rows_that_give_logits_are_in_the_order_of_the_batch() -> None:
    """Decodes, a chunk that scores and ends, one that scores and goes on, one that does neither."""
    slots, maker = Slots(SMALL), PlanMaker()
    slots.begin(1)
    slots.apply(maker.make(admits=[admit(0, [1], [0])], chunks=[(0, 1)]))
    scored = [msgspec.structs.replace(admit(slot, [1, 2, 3], [slot]), prompt_logprobs=0) for slot in (1, 2)]
    admissions = [*scored, admit(3, [4, 5, 6], [3])]
    step = slots.apply(maker.make(admits=admissions, chunks=[(3, 2), (1, 3), (2, 2)]))
    assert special_work.logit_rows(step) == ([0, 3, 4, 5, 6, 7], [0, 3], [1, 2, 4, 5])
