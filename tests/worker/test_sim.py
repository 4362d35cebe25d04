"""The sim device: deterministic tokens, the same slot state as a real device, no torch."""

import subprocess
import sys
from random import Random

import msgspec
import pytest
from support.worker_plans import SMALL, PlanMaker, PlanModel, admit
from support.worker_process import sim_launch

from pagewire.wire.logits import LogprobsRequest
from pagewire.wire.plan import NO_TOKEN
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.sim import DEFAULT_NUM_BLOCKS, SimRunner, sim_num_blocks
from pagewire.worker.slots.plan_check import PlanError


def make_runner(**changes: object) -> SimRunner:
    runner = SimRunner(SMALL, **{"eos_token_ids": (), "step_us": 0} | changes)
    runner.begin(1)
    return runner


def sampling(seed: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, top_k=0, top_p=1.0, seed=seed)


def test_a_sequence_continues_the_same_after_a_recomputation() -> None:
    runner, maker = make_runner(), PlanMaker()
    got = runner.run(
        maker.make(admits=[admit(0, [1, 2], [0, 1, 2], sampling=sampling(9))], chunks=[(0, 2)])
    ).tokens.tolist()
    for _ in range(6):
        got += runner.run(maker.make()).tokens.tolist()
    runner.begin(2)
    maker = PlanMaker(epoch=2)
    known = [1, 2, *got[:3]]
    again = runner.run(
        maker.make(admits=[admit(4, known, [7, 8, 9], sampling=sampling(9))], chunks=[(4, 5)])
    ).tokens.tolist()
    for _ in range(3):
        again += runner.run(maker.make()).tokens.tolist()
    assert again == got[3:]


def test_tokens_avoid_end_of_sequence_ids_and_the_vocabulary_s_end() -> None:
    runner, maker = make_runner(eos_token_ids=(0, 3, 4, 5, 89, 99)), PlanMaker()
    seen: set[int] = set()
    for seed in range(600):
        admits = [admit(0, [1], [0], sampling=sampling(seed))]
        seen.update(runner.run(maker.make(release=[0] if seed else [], admits=admits, chunks=[(0, 1)])).tokens.tolist())
    assert seen == set(range(90)) - {0, 3, 4, 5, 89}


def test_it_follows_plans_like_a_real_device() -> None:
    model, runner = PlanModel(SMALL, Random(3)), make_runner()
    for _ in range(200):
        plan, expected = model.step()
        assert len(runner.run(plan).tokens) == len(expected.samples)
    with pytest.raises(PlanError):
        runner.run(plan)


def test_a_step_takes_as_long_as_it_should() -> None:
    times = iter([10.0, 10.0002])
    slept: list[float] = []
    runner = make_runner(step_us=500, clock=lambda: next(times), sleep=slept.append)
    runner.run(PlanMaker().make())
    assert slept == pytest.approx([0.0003])


def test_a_vocabulary_of_end_of_sequence_ids_is_refused() -> None:
    with pytest.raises(ValueError, match="has no id left"):
        make_runner(eos_token_ids=tuple(range(100)))


def test_number_of_blocks() -> None:
    launch = sim_launch("ipc:///nowhere")
    per_seq = launch.max_model_len // 16
    assert sim_num_blocks(launch, 16) == launch.max_num_seqs * per_seq
    large = msgspec.structs.replace(launch, max_model_len=40_960, max_num_seqs=256)
    assert sim_num_blocks(large, 16) == DEFAULT_NUM_BLOCKS
    block_bytes = 2 * 2 * 1 * 16 * 16 * 2  # keys and values, layers, KV heads, head dim, block size; bf16
    bought = msgspec.structs.replace(launch, kv_cache_bytes=(per_seq + 1) * block_bytes + 1)
    assert sim_num_blocks(bought, 16) == per_seq + 1
    assert sim_num_blocks(msgspec.structs.replace(bought, earlier_num_blocks=2), 16) == 2
    with pytest.raises(ValueError, match=f"one sequence of max_model_len {launch.max_model_len} needs {per_seq}"):
        sim_num_blocks(msgspec.structs.replace(launch, kv_cache_bytes=per_seq * block_bytes - 1), 16)


def test_it_imports_no_torch() -> None:
    code = (
        "import sys; import pagewire.worker.__main__, pagewire.worker.sim; "
        "print([m for m in ('torch', 'transformers', 'gguf', 'safetensors') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_rows_that_ask_more_of_logits_than_there_are_fail_with_a_reason() -> None:
    maker, runner = PlanMaker(), make_runner()
    asking = [
        msgspec.structs.replace(admit(0, [1, 2], [0]), logprobs=LogprobsRequest()),
        admit(1, [1, 2], [1]),
        msgspec.structs.replace(admit(2, [1, 2, 3], [2]), prompt_logprobs=2),
        msgspec.structs.replace(admit(3, [1, 2], [3]), sampling=SamplingParams(presence_penalty=1.0)),
    ]
    sampled = runner.run(maker.make(admits=asking, chunks=[(0, 2), (1, 2), (2, 3), (3, 2)]))
    assert [token == NO_TOKEN for token in sampled.tokens.tolist()] == [True, False, True, True]
    assert [(failure.row, failure.by_request) for failure in sampled.failures] == [(0, True), (2, True), (3, True)]
    (scores,) = sampled.prompt_logprobs
    assert (scores.chunk, scores.position, len(scores.chosen), len(scores.ids)) == (2, 1, 8, 16)
