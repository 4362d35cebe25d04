"""The runner's bookkeeping with a scripted model at the model seam, and its tokens with a real decoder."""

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.worker_plans import GREEDY, SMALL, PlanMaker, PlanModel, admit

from pagewire.wire.model import DecoderConfig
from pagewire.wire.plan import NO_TOKEN
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.cpu.runner import CpuRunner
from pagewire.worker.slots.plan_check import PlanError

CONFIG = DecoderConfig(
    architecture="qwen3",
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=SMALL.vocab_size,
    max_position_embeddings=64,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    tie_word_embeddings=False,
    qk_norm=True,
    qkv_bias=False,
)


def next_id(token: int, position: int) -> int:
    """The scripted model's greedy answer to `token` at `position`."""
    return (token * 31 + position * 7 + 1) % SMALL.vocab_size


class ScriptedModel:
    """Records batches and answers with `next_id`."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.bad_ids: set[int] = set()

    def forward(self, batch: Batch, kv: KVCache) -> torch.Tensor:
        self.batches.append(batch)
        logits = torch.zeros(len(batch.sample_rows_S), SMALL.vocab_size)
        for index, row in enumerate(batch.sample_rows_S.tolist()):
            token, position = int(batch.input_ids_T[row]), int(batch.positions_T[row])
            logits[index, next_id(token, position)] = 1.0
            if token in self.bad_ids:
                logits[index] = float("nan")
        return logits


def make_kv() -> KVCache:
    return KVCache(CONFIG, SMALL.num_blocks, SMALL.block_size, torch.float32)


def make_runner(model: ScriptedModel) -> CpuRunner:
    runner = CpuRunner(model, make_kv(), SMALL)
    runner.begin(1)
    return runner


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), num_steps=st.integers(1, 25))
def test_batches_say_what_plans_say(seed: int, num_steps: int) -> None:
    plans, model = PlanModel(SMALL, Random(seed)), ScriptedModel()
    runner = make_runner(model)
    last: dict[int, int] = {}
    for _ in range(num_steps):
        plan, expected = plans.step()
        model.batches.clear()
        tokens = runner.run(plan).tokens

        ids = [last[slot] for slot, _ in expected.decodes]
        ids += [token for _, _, chunk, _ in expected.chunks for token in chunk]
        if not ids:
            assert not model.batches
            assert len(tokens) == 0
            continue
        (batch,) = model.batches
        positions = [position for _, position in expected.decodes]
        lengths = [1] * len(positions)
        contexts = [position + 1 for position in positions]
        samples = list(range(len(positions)))
        for _, start, chunk, ends in expected.chunks:
            positions += range(start, start + len(chunk))
            lengths.append(len(chunk))
            contexts.append(start + len(chunk))
            if ends:
                samples.append(sum(lengths) - 1)
        starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
        assert batch.input_ids_T.tolist() == ids
        assert batch.positions_T.tolist() == positions
        assert batch.query_starts.tolist() == starts
        assert batch.context_lens_B.tolist() == contexts
        assert batch.sample_rows_S.tolist() == samples
        assert batch.num_decodes == len(expected.decodes)
        assert batch.seq_rows == tuple(zip(starts, lengths, contexts, strict=False))

        slots = [slot for slot, _ in expected.decodes] + [slot for slot, *_ in expected.chunks]
        size = SMALL.block_size
        for table, slot, context in zip(batch.block_tables_BM.tolist(), slots, contexts, strict=True):
            needed = -(-context // size)
            assert table[:needed] == plans.sequences[slot].blocks[:needed]
        owner = [slot for slot, length in zip(slots, lengths, strict=True) for _ in range(length)]
        written = [
            plans.sequences[owner[row]].blocks[positions[row] // size] * size + positions[row] % size
            for row in batch.write_rows_W.tolist()
        ]
        assert batch.kv_positions_W.tolist() == written
        assert sorted(written) == sorted(expected.writes)
        dtypes = [tensor.dtype for tensor in (batch.input_ids_T, batch.query_starts, batch.block_tables_BM)]
        assert dtypes == [torch.int64, torch.int32, torch.int32]

        assert len(tokens) == len(expected.samples)
        greedy = [next_id(ids[row], positions[row]) for row in samples]
        for (slot, _), token, likeliest in zip(expected.samples, tokens.tolist(), greedy, strict=True):
            if plans.sequences[slot].sampling.temperature == 0:
                assert token == likeliest
            last[slot] = token


def test_a_wrong_plan_does_not_reach_the_model() -> None:
    model = ScriptedModel()
    runner = make_runner(model)
    with pytest.raises(PlanError):
        runner.run(PlanMaker(epoch=2).make(admits=[admit(0, [1], [0])], chunks=[(0, 1)]))
    assert not model.batches


def test_a_row_without_a_token_harms_no_other_and_its_slot_goes_on() -> None:
    model = ScriptedModel()
    model.bad_ids = {66}
    runner, maker = make_runner(model), PlanMaker()
    plan = maker.make(admits=[admit(0, [66], [0]), admit(1, [5], [1])], chunks=[(0, 1), (1, 1)])
    assert runner.run(plan).tokens.tolist() == [NO_TOKEN, next_id(5, 0)]
    # The plan that was in flight already still runs; the one after it releases the slot.
    assert runner.run(maker.make()).tokens.tolist() == [next_id(0, 1), next_id(next_id(5, 0), 1)]
    assert len(runner.run(maker.make(release=[0])).tokens) == 1


def test_a_new_epoch_forgets_the_last_one() -> None:
    model = ScriptedModel()
    runner, maker = make_runner(model), PlanMaker()
    runner.run(maker.make(admits=[admit(0, [1, 2, 3], [0])], chunks=[(0, 2)]))
    runner.begin(2)
    maker = PlanMaker(epoch=2)
    assert runner.run(maker.make(admits=[admit(0, [9], [0])], chunks=[(0, 1)])).tokens.tolist() == [next_id(9, 0)]


class TestWithARealDecoder:
    """A tiny random decoder: tokens may not depend on how a sequence was cut into steps, and by whom it was kept
    company."""

    NUM_TOKENS = 12

    @pytest.fixture
    def decoder(self) -> object:
        from pagewire.wire.model import ModelSpec
        from pagewire.worker.attention.paged_torch import PagedTorchAttention
        from pagewire.worker.weights.build import load_decoder

        spec = ModelSpec(
            name="tiny",
            decoder=CONFIG,
            weights_format="random",
            weights_files=(),
            weights_digest="",
            random_seed=5,
            eos_token_ids=(),
            tokenizer_file=None,
        )
        return load_decoder(spec, "float32", PagedTorchAttention(), lambda stage, fraction: None)

    def alone(self, decoder: object, ids: list[int]) -> list[int]:
        """Greedy tokens where every token is computed by a prefill of everything before it."""
        ids = list(ids)
        for _ in range(self.NUM_TOKENS):
            runner = CpuRunner(decoder, make_kv(), SMALL)
            runner.begin(1)
            blocks = list(range(-(-len(ids) // SMALL.block_size)))
            plan = PlanMaker().make(admits=[admit(0, ids, blocks)], chunks=[(0, len(ids))])
            ids += runner.run(plan).tokens.tolist()
        return ids[-self.NUM_TOKENS :]

    def test_decoding_equals_prefilling(self, decoder: object) -> None:
        random = Random(1)
        prompts = [[random.randrange(SMALL.vocab_size) for _ in range(size)] for size in (1, 3, 8, 9)]
        expected = [self.alone(decoder, prompt) for prompt in prompts]
        runner, maker = CpuRunner(decoder, make_kv(), SMALL), PlanMaker()
        runner.begin(1)
        tables = [list(range(8 * slot, 8 * slot + 8)) for slot in range(4)]
        got: list[list[int]] = [[] for _ in prompts]
        admits = [admit(slot, prompts[slot], tables[slot], sampling=GREEDY) for slot in range(4)]
        tokens = runner.run(maker.make(admits=admits, chunks=[(2, 3), (1, 3), (0, 1), (3, 2)])).tokens.tolist()
        got[1].append(tokens[0])
        got[0].append(tokens[1])
        tokens = runner.run(maker.make(chunks=[(3, 7), (2, 5)], idle=[0])).tokens.tolist()
        for slot, token in zip((1, 3, 2), tokens, strict=True):
            got[slot].append(token)
        while len(got[0]) < self.NUM_TOKENS:
            for slot, token in enumerate(runner.run(maker.make()).tokens.tolist()):
                got[slot].append(token)
        assert [tokens[: self.NUM_TOKENS] for tokens in got] == expected

    def test_a_fully_cached_prompt_yields_the_same_and_writes_nothing(self, decoder: object) -> None:
        prompt = [7, 1, 50, 3, 2, 2, 9, 60]
        expected = self.alone(decoder, prompt)
        kv = make_kv()
        runner, maker = CpuRunner(decoder, kv, SMALL), PlanMaker()
        runner.begin(1)
        first = runner.run(maker.make(admits=[admit(0, prompt, [10, 11])], chunks=[(0, 8)])).tokens.tolist()
        for layer in kv.layers:
            layer[:, 12:] = float("nan")  # whoever reads or writes elsewhere is found out
        shared = [layer[:, 10:12].clone() for layer in kv.layers]
        second = runner.run(
            maker.make(admits=[admit(3, prompt, [10, 11], cached=8)], chunks=[(3, 1)], idle=[0])
        ).tokens.tolist()
        assert first == second == expected[:1]
        assert all(torch.equal(layer[:, 10:12], before) for layer, before in zip(kv.layers, shared, strict=True))
        got = second
        got += runner.run(maker.make(grow=[(3, 5)], idle=[0])).tokens.tolist()
        assert got == expected[:2]
