"""Logit processors on a CPU: values and tokens as transformers' own classes give them, and rows that fail alone."""

import numpy as np
import pytest
import torch
from support.drawn_admits import FILTERS, KINDS, DrawnAdmits, random_logits
from support.processors import judged, judged_token
from support.worker_plans import PlanMaker

from pagewire.wire.columns import pack, unpack
from pagewire.wire.logits import LogitControls, LogprobsRequest
from pagewire.wire.plan import NO_TOKEN, NOTHING_LEFT, Admit
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.native.library import LIBRARY_FILE, load_library
from pagewire.worker.sampling.native_sampler import NativeSampler
from pagewire.worker.sampling.processors import Processors
from pagewire.worker.sampling.sampler import Sampler
from pagewire.worker.sampling.special_rows import SpecialRows, TokenSampler
from pagewire.worker.slots.columns import SlotLimits
from pagewire.worker.slots.state import Slots

NUM_ROWS = 1000
VOCAB_SIZE = 400
PER_STEP = 50
LIMITS = SlotLimits(
    max_num_seqs=PER_STEP,
    max_model_len=64,
    max_num_batched_tokens=PER_STEP * 64,
    block_size=64,
    num_blocks=PER_STEP,
    vocab_size=VOCAB_SIZE,
)


@pytest.fixture(params=["numpy", "native"])
def sampler(request: pytest.FixtureRequest) -> TokenSampler:
    if request.param == "numpy":
        return Sampler(VOCAB_SIZE)
    if not LIBRARY_FILE.exists():
        pytest.skip("built without the native library")
    return NativeSampler(load_library(1), VOCAB_SIZE)


class Stage:
    """Slots and the stage over them; sequences are admitted whole, so that each samples at once."""

    def __init__(self, sampler: TokenSampler) -> None:
        self.slots = Slots(LIMITS)
        self.slots.begin(1)
        self.maker = PlanMaker()
        self.errors: list[Exception] = []
        self.rows = SpecialRows(self.slots, sampler, VOCAB_SIZE, lambda what, error: self.errors.append(error))

    def sample(self, admits: list[Admit], logits_SV: torch.Tensor, release: list[int] | None = None):  # type: ignore[no-untyped-def]
        chunks = [(admit.slot, len(admit.tokens) // 4) for admit in admits]
        step = self.slots.apply(self.maker.make(admits=admits, chunks=chunks, release=release))
        sampled = self.rows.sample(step, logits_SV)
        self.slots.record(step, sampled.tokens)
        return sampled


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_transformers_to_the_bit(kind: str) -> None:
    generator = np.random.default_rng(len(kind))
    draw = DrawnAdmits(generator, VOCAB_SIZE)
    for logits_V in random_logits(generator, NUM_ROWS, VOCAB_SIZE):
        admit = draw.draw(kind)
        processed = logits_V.clone()
        Processors(admit, VOCAB_SIZE).apply(processed.numpy(), unpack(admit.tokens))
        expected = judged(logits_V, admit)
        assert torch.equal(processed, expected), admit


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_the_inverse_of_transformers_distribution(kind: str, sampler: TokenSampler) -> None:
    generator = np.random.default_rng(len(kind) + 100)
    draw, stage, num_near = DrawnAdmits(generator, VOCAB_SIZE), Stage(sampler), 0
    release: list[int] = []
    for first in range(0, NUM_ROWS, PER_STEP):
        logits_SV = random_logits(generator, PER_STEP, VOCAB_SIZE)
        before = logits_SV.clone()
        admits = [draw.draw(kind, slot, **FILTERS[(first + slot) % len(FILTERS)]) for slot in range(PER_STEP)]
        sampled = stage.sample(admits, logits_SV, release)
        release = list(range(PER_STEP))
        assert torch.equal(logits_SV, before), "the model's logits were written to"
        for admit, logits_V, token in zip(admits, logits_SV, sampled.tokens.tolist(), strict=True):
            num_near += not judged_token(logits_V, admit, token)
    assert num_near < NUM_ROWS / 20
    assert not stage.errors


def test_what_is_kept_up_is_what_an_admission_brings(sampler: TokenSampler) -> None:
    """Penalties of a sequence that has decoded here, and of the same one admitted again with all of its tokens."""
    generator = np.random.default_rng(5)
    params = SamplingParams(seed=9, repetition_penalty=1.3, frequency_penalty=0.3, presence_penalty=0.4)
    prompt = [3, 1, 4, 1, 5]
    words = [pack([7, 3]), pack([3])]
    controls = LogitControls(bad_words=words, min_tokens=8, end_ids=pack([2, 11]))
    logits = [random_logits(generator, 1, VOCAB_SIZE) for _ in range(30)]

    def admit(tokens: list[int]) -> Admit:
        return Admit(0, pack(tokens), len(prompt), 0, pack([0]), params, controls)

    grown, tokens = Stage(sampler), list(prompt)
    for index, logits_SV in enumerate(logits):
        if index == 0:
            sampled = grown.sample([admit(prompt)], logits_SV)
        else:
            step = grown.slots.apply(grown.maker.make())
            sampled = grown.rows.sample(step, logits_SV)
            grown.slots.record(step, sampled.tokens)
        again = Stage(sampler).sample([admit(tokens)], logits_SV)
        assert again.tokens.tolist() == sampled.tokens.tolist()
        tokens.append(int(sampled.tokens[0]))


def test_the_next_holder_of_a_slot_begins_anew(sampler: TokenSampler) -> None:
    generator = np.random.default_rng(6)
    draw, stage = DrawnAdmits(generator, VOCAB_SIZE), Stage(sampler)
    release: list[int] = []
    for _ in range(20):
        admit, logits_SV = draw.draw("everything", 3), random_logits(generator, 1, VOCAB_SIZE)
        alone = Stage(sampler).sample([admit], logits_SV)
        assert stage.sample([admit], logits_SV, release).tokens.tolist() == alone.tokens.tolist()
        release = [3]


def test_a_row_that_fails_ends_alone(sampler: TokenSampler) -> None:
    generator = np.random.default_rng(7)
    logits_SV = random_logits(generator, 5, VOCAB_SIZE)
    logits_SV[3, 7] = torch.nan
    plain = [
        Admit(slot, pack([1, 2]), 2, 0, pack([slot]), SamplingParams(seed=slot), logprobs=LogprobsRequest(2))
        for slot in range(5)
    ]
    nothing_left = LogitControls(allowed_ids=pack([5]), bad_words=[pack([2, 5])])
    admits = [
        plain[0],
        Admit(1, pack([1, 2]), 2, 0, pack([1]), SamplingParams(seed=1), nothing_left),
        plain[2],
        plain[3],
        plain[4],
    ]
    stage = Stage(sampler)
    sampled = stage.sample(admits, logits_SV)
    expected = Stage(sampler).sample(plain, logits_SV)
    assert sampled.tokens[[0, 2, 4]].tolist() == expected.tokens[[0, 2, 4]].tolist()
    assert sampled.tokens[[1, 3]].tolist() == [NO_TOKEN, NO_TOKEN]
    assert [(failure.row, failure.reason, failure.by_request) for failure in sampled.failures] == [
        (1, NOTHING_LEFT, True)
    ]
    assert [each.row for each in sampled.logprobs] == [0, 2, 4]
    assert not stage.errors


class _Raises:
    """A sampler that breaks at a row of one id."""

    def __init__(self) -> None:
        self._sampler = Sampler(VOCAB_SIZE)

    def sample(self, logits_SV: torch.Tensor, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        if len(logits_SV) == 1:
            raise RuntimeError("broken")
        return self._sampler.sample(logits_SV, rows, positions)


def test_whatever_a_row_raises_is_its_own_end() -> None:
    logits_SV = random_logits(np.random.default_rng(8), 2, VOCAB_SIZE)
    biased = LogitControls(bias_ids=pack([1]), bias_values=np.float32(1).tobytes())
    admits = [
        Admit(0, pack([1]), 1, 0, pack([0]), SamplingParams(), biased),
        Admit(1, pack([1]), 1, 0, pack([1]), SamplingParams(seed=4)),
    ]
    stage = Stage(_Raises())
    sampled = stage.sample(admits, logits_SV)
    assert sampled.tokens[0] == NO_TOKEN
    assert sampled.tokens[1] != NO_TOKEN
    assert [(failure.row, failure.by_request) for failure in sampled.failures] == [(0, False)]
    assert "RuntimeError" in sampled.failures[0].reason
    assert len(stage.errors) == 1
