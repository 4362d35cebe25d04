"""Token for token the same as transformers, whatever company a sequence keeps.

The model alone is compared in tests/worker/model; here it runs under the scheduler: among 16 others of mixed lengths,
in chunks of 7 tokens, behind a prefix-cache hit, and after preemption, with block sizes 1, 16 and 256.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from support.checkpoints import Checkpoint, checkpoints_in
from support.decoders import KINDS, ServedModel, served_model_for
from support.local_engine import LocalEngine
from support.torch_threads import torch_threads

from pagewire.wire.launch import CpuKernelKind
from pagewire.wire.sampling import SamplingParams

FAMILIES = ("qwen3-tied", "qwen3-untied", "llama", "mistral", "qwen2")
BLOCK_SIZES = (1, 16, 256)
PROMPT = [(7 * i * i + 3 * i + 11) % 256 for i in range(37)]
NUM_TOKENS = 64
SUBJECT = 0


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    return checkpoints_in(tmp_path_factory.mktemp)


@pytest.fixture(params=FAMILIES, scope="module")
def checkpoint(request: pytest.FixtureRequest, checkpoint_of: Callable[[str], Checkpoint]) -> Checkpoint:
    return checkpoint_of(request.param)


@pytest.fixture(scope="module", params=KINDS)
def served(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> ServedModel:
    return served_model_for(checkpoint.spec, "float32", request.param)


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint) -> list[int]:
    return transformers_says(checkpoint, PROMPT, NUM_TOKENS)


def transformers_says(checkpoint: Checkpoint, prompt: list[int], num_tokens: int) -> list[int]:
    """Greedy output of the independent judge."""
    output = checkpoint.hf_model.generate(
        torch.tensor([prompt]), max_new_tokens=num_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    assert len(set(tokens)) > 8, "a model that repeats itself would prove little"
    return tokens


def engine_of(served: ServedModel, block_size: int, num_tokens: int = 8192, **limits: int) -> LocalEngine:
    return LocalEngine(served, block_size=block_size, num_blocks=num_tokens // block_size, **limits)


def add_company(engine: LocalEngine, num: int = 16) -> None:
    """Others of mixed lengths, none a prefix of another."""
    for other in range(1, num + 1):
        length = 3 + (other * 29) % 90
        engine.submit(other, [(other * 31 + i * 5) % 256 for i in range(length)], max_tokens=20 + (other * 17) % 60)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_among_others_in_small_chunks(served: ServedModel, expected: list[int], block_size: int) -> None:
    engine = engine_of(served, block_size, chunk=7)
    add_company(engine, 8)
    for _ in range(5):
        engine.turn()
    engine.submit(SUBJECT, PROMPT, NUM_TOKENS)
    for other in range(9, 17):
        engine.submit(other, [other] * (other * 3), 30)
    engine.run()
    assert engine.outputs[SUBJECT] == expected


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_behind_a_prefix_hit(served: ServedModel, expected: list[int], block_size: int) -> None:
    engine = engine_of(served, block_size)
    engine.submit(1, [*PROMPT, 5], 1)
    engine.run()
    engine.submit(SUBJECT, PROMPT, NUM_TOKENS)
    add_company(engine)
    engine.run()
    assert engine.cached[SUBJECT] == len(PROMPT) // block_size * block_size
    assert engine.outputs[SUBJECT] == expected
    engine.submit(50, PROMPT, NUM_TOKENS)
    engine.run()
    assert engine.outputs[50] == expected, "the same again, its own output now cached as well"


def test_behind_a_hit_of_a_block_of_256(served: ServedModel, checkpoint: Checkpoint) -> None:
    long_prompt = [(11 * i * i + i + 3) % 256 for i in range(300)]
    expected = transformers_says(checkpoint, long_prompt, NUM_TOKENS)
    engine = engine_of(served, 256)
    for handle in (SUBJECT, 1):
        engine.submit(handle, long_prompt, NUM_TOKENS)
    engine.submit(2, long_prompt[:256], NUM_TOKENS)
    engine.run()
    assert engine.cached == {SUBJECT: 0, 1: 256, 2: 256}
    assert engine.outputs[SUBJECT] == engine.outputs[1] == expected


@pytest.mark.parametrize("block_size", [1, 16])
def test_after_preemption(served: ServedModel, expected: list[int], block_size: int) -> None:
    # Memory for less than the three sequences need: the subject, being the youngest, has to give way.
    engine = engine_of(served, block_size, num_tokens=160, max_num_seqs=3)
    for other in (1, 2):
        engine.submit(other, [other] * 20, 50)
    engine.submit(SUBJECT, PROMPT, NUM_TOKENS)
    engine.run()
    assert engine.scheduler.counters.preemptions > 0
    assert engine.outputs[SUBJECT] == expected


def test_after_preemption_from_blocks_of_256(served: ServedModel, checkpoint: Checkpoint) -> None:
    # An admission leaves one block free for each running sequence, so one of them must grow twice to preempt another.
    expected = transformers_says(checkpoint, PROMPT, 330)
    engine = engine_of(served, 256, num_tokens=1024)
    engine.submit(1, [9] * 200, 400)
    engine.submit(SUBJECT, PROMPT, 330)
    engine.run()
    assert engine.scheduler.counters.preemptions > 0
    assert engine.outputs[SUBJECT] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_seeded_draw_does_not_depend_on_company_or_preemption(
    checkpoint_of: Callable[[str], Checkpoint], kind: CpuKernelKind
) -> None:
    served = served_model_for(checkpoint_of("qwen3-tied").spec, "float32", kind)
    sampling = SamplingParams(temperature=0.8, top_k=40, top_p=0.9, seed=1234)
    alone = engine_of(served, 16)
    alone.submit(SUBJECT, PROMPT, NUM_TOKENS, sampling)
    alone.run()
    crowded = engine_of(served, 16, num_tokens=320, chunk=7)
    add_company(crowded, 6)
    crowded.submit(SUBJECT, PROMPT, NUM_TOKENS, sampling)
    crowded.run()
    assert crowded.scheduler.counters.preemptions > 0
    assert crowded.outputs[SUBJECT] == alone.outputs[SUBJECT]
    assert len(set(alone.outputs[SUBJECT])) > 8
