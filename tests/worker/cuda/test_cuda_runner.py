"""The step on a device, replayed on the CPU, against the plain runner: the same tokens and the same writes."""

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.device_runner import device_decoder, make_runner, plain_decoder, run, tiny_config
from support.worker_plans import SMALL, PlanMaker, PlanModel, admit

from pagewire.wire.columns import unpack
from pagewire.wire.plan import NO_TOKEN, StepPlan
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.cpu.runner import CpuRunner
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.slots.columns import SlotLimits
from pagewire.worker.slots.plan_check import PlanError

WIDE = SlotLimits(
    max_num_seqs=40, max_model_len=64, max_num_batched_tokens=96, block_size=4, num_blocks=640, vocab_size=100
)
CONFIG = tiny_config(SMALL.vocab_size)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return plain_decoder(CONFIG)


def make_kv(limits: SlotLimits) -> KVCache:
    return KVCache(CONFIG, limits.num_blocks, limits.block_size, torch.float32)


def written_since(kv: KVCache, before: torch.Tensor) -> set[int]:
    """block id × block size + offset of every position that differs from `before`, the first layer's keys."""
    changed = (kv.layers[0][0] != before).any(dim=3).any(dim=1)  # [N, P]
    return {int(block) * kv.block_size + int(offset) for block, offset in changed.nonzero().tolist()}


def check_stream(decoder: Decoder, limits: SlotLimits, seed: int, num_steps: int, eager: bool) -> None:
    """One random stream of plans through both runners."""
    plans = PlanModel(limits, Random(seed))
    kv, plain_kv = make_kv(limits), make_kv(limits)
    plain = CpuRunner(decoder, plain_kv, limits)
    plain.begin(1)
    runner = make_runner(device_decoder(decoder, limits), kv, limits, eager=eager)
    assert not any(layer.any() for layer in kv.layers), "a capture wrote into the cache"
    for _ in range(num_steps):
        plan, expected = plans.step()
        before = kv.layers[0][0].clone()
        tokens = unpack(run(runner, plan).tokens).tolist()
        assert tokens == plain.run(plan).tokens.tolist()
        assert len(tokens) == len(expected.samples)
        assert written_since(kv, before) <= expected.writes
    for layer, plain_layer in zip(kv.layers, plain_kv.layers, strict=True):
        torch.testing.assert_close(layer, plain_layer)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), num_steps=st.integers(1, 25))
def test_captured_steps_equal_the_plain_path(decoder: Decoder, seed: int, num_steps: int) -> None:
    check_stream(decoder, SMALL, seed, num_steps, eager=False)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), num_steps=st.integers(1, 25))
def test_eager_steps_equal_the_plain_path(decoder: Decoder, seed: int, num_steps: int) -> None:
    check_stream(decoder, SMALL, seed, num_steps, eager=True)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_changing_membership_of_up_to_forty(decoder: Decoder, seed: int) -> None:
    check_stream(decoder, WIDE, seed, 30, eager=False)


def test_every_batch_size_from_one_to_forty(decoder: Decoder) -> None:
    """One sequence more before each step, then one fewer, slots in a shuffled order; half of them draw."""
    random = Random(3)
    slots = random.sample(range(WIDE.max_num_seqs), WIDE.max_num_seqs)
    plain = CpuRunner(decoder, make_kv(WIDE), WIDE)
    plain.begin(1)
    runner, maker = make_runner(device_decoder(decoder, WIDE), make_kv(WIDE), WIDE), PlanMaker()

    def step(plan: StepPlan) -> int:
        tokens = unpack(run(runner, plan).tokens).tolist()
        assert tokens == plain.run(plan).tokens.tolist()
        return len(tokens)

    for index, slot in enumerate(slots):
        drawn = SamplingParams(temperature=0.8 * (index % 2), top_k=index % 3 * 20, top_p=0.9, seed=2**64 - 1 - index)
        prompt = [random.randrange(WIDE.vocab_size) for _ in range(random.randint(1, 5))]
        blocks = list(range(16 * slot, 16 * slot + 16))
        admission = admit(slot, prompt, blocks, sampling=drawn)
        assert step(maker.make(admits=[admission], chunks=[(slot, len(prompt))], idle=slots[:index])) == 1
        assert step(maker.make()) == index + 1
    for index in range(len(slots)):
        idle = random.sample(slots[index + 1 :], index % 3 if index < 30 else 0)
        assert step(maker.make(release=[slots[index]], idle=idle)) == len(slots) - index - 1 - len(idle)


class NanModel:
    """Answers with (token + 1) mod V, or with NaN where the token is bad."""

    def __init__(self, bad: int) -> None:
        self.bad = bad

    def forward(self, batch: Batch, kv: KVCache) -> torch.Tensor:
        ids = batch.input_ids_T[batch.sample_rows_S]
        logits = torch.zeros(len(ids), SMALL.vocab_size).scatter_(1, (ids[:, None] + 1) % SMALL.vocab_size, 1.0)
        logits[ids == self.bad] = float("nan")
        return logits


def test_a_row_without_a_token_harms_no_other_and_its_slot_goes_on() -> None:
    runner, maker = make_runner(NanModel(bad=66), make_kv(SMALL), SMALL), PlanMaker()
    plan = maker.make(admits=[admit(0, [66], [0]), admit(1, [5], [1])], chunks=[(0, 1), (1, 1)])
    assert unpack(run(runner, plan).tokens).tolist() == [NO_TOKEN, 6]
    assert unpack(run(runner, maker.make()).tokens).tolist() == [1, 7]
    assert unpack(run(runner, maker.make(release=[0])).tokens).tolist() == [8]


def test_a_wrong_plan_leaves_no_trace() -> None:
    runner, maker = make_runner(NanModel(bad=-1), make_kv(SMALL), SMALL), PlanMaker()
    run(runner, maker.make(admits=[admit(0, [5], [0])], chunks=[(0, 1)]))
    with pytest.raises(PlanError):
        runner.submit(PlanMaker(epoch=2).make())
    assert runner.take() is None
    assert unpack(run(runner, maker.make()).tokens).tolist() == [7]


def test_a_step_without_rows_still_applies_its_changes() -> None:
    runner, maker = make_runner(NanModel(bad=-1), make_kv(SMALL), SMALL), PlanMaker()
    assert run(runner, maker.make()).tokens == b""
    assert run(runner, maker.make(admits=[admit(2, [5, 6, 7], [3])])).tokens == b""
    assert run(runner, maker.make(chunks=[(2, 2)])).tokens == b""
    assert unpack(run(runner, maker.make(chunks=[(2, 1)])).tokens).tolist() == [8]
    assert run(runner, maker.make(idle=[2])).tokens == b""
    assert unpack(run(runner, maker.make()).tokens).tolist() == [9]


def test_a_new_epoch_forgets_the_last_one() -> None:
    runner, maker = make_runner(NanModel(bad=-1), make_kv(SMALL), SMALL), PlanMaker()
    runner.submit(maker.make(admits=[admit(0, [1, 2, 3], [0])], chunks=[(0, 2)]))
    runner.begin(2)
    assert runner.take() is None
    maker = PlanMaker(epoch=2)
    result = run(runner, maker.make(admits=[admit(0, [9], [0])], chunks=[(0, 1)]))
    assert (unpack(result.tokens).tolist(), result.idle_us) == ([10], 0)
