"""The exact distribution: 200,000 draws of each set of parameters against it, by Pearson's chi-square test.

Seeds are fixed, and so the outcome is. The limit is the value that one right sampler in a thousand exceeds, by Wilson's
and Hilferty's approximation (1931).
"""

import numpy as np
import pytest
import torch
from support.drawn_admits import DrawnAdmits
from support.processors import judged, warpers

from pagewire.wire.columns import Int32Array, SamplingRows, row_of, unpack, words_of
from pagewire.wire.plan import Admit
from pagewire.worker.kernels.reference.sampling import sample
from pagewire.worker.kernels.workspaces import SamplingWorkspace
from pagewire.worker.native.library import LIBRARY_FILE, load_library
from pagewire.worker.sampling.native_sampler import NativeSampler
from pagewire.worker.sampling.processors import Processors
from pagewire.worker.sampling.sampler import Sampler
from pagewire.worker.sampling.special_rows import TokenSampler

VOCAB_SIZE = 97
NUM_DRAWS = 200_000
PER_CALL = 2_000
LEAST_EXPECTED = 5.0
_Z_OF_A_THOUSANDTH = 3.0902

SETS = [
    ("plain", {}),
    ("plain", {"temperature": 0.3}),
    ("plain", {"temperature": 2.0}),
    ("plain", {"top_k": 7}),
    ("plain", {"top_p": 0.6}),
    ("plain", {"min_p": 0.1}),
    ("plain", {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.02}),
    ("bias", {"temperature": 1.5}),
    ("repetition", {}),
    ("frequency", {"top_p": 0.95}),
    ("allowed", {"temperature": 0.8}),
    ("everything", {"temperature": 1.2, "min_p": 0.001}),
]


class ReferenceSampler:
    """The devices' kernel, by its definition."""

    def __init__(self) -> None:
        self._workspace = SamplingWorkspace.allocate(PER_CALL, VOCAB_SIZE, torch.device("cpu"))

    def sample(self, logits_SV: torch.Tensor, rows: SamplingRows, positions: Int32Array) -> Int32Array:
        tokens_S = torch.empty(len(rows), dtype=torch.int32)
        words_SP, position_S = torch.from_numpy(words_of(rows)), torch.from_numpy(positions)
        sample(logits_SV, words_SP, position_S, tokens_S, workspace=self._workspace)
        tokens: Int32Array = tokens_S.numpy()
        return tokens


@pytest.fixture(params=["numpy", "reference", "native"])
def sampler(request: pytest.FixtureRequest) -> TokenSampler:
    if request.param == "numpy":
        return Sampler(VOCAB_SIZE)
    if request.param == "reference":
        return ReferenceSampler()
    if not LIBRARY_FILE.exists():
        pytest.skip("built without the native library")
    return NativeSampler(load_library(1), VOCAB_SIZE)


def distribution(admit: Admit, logits_V: torch.Tensor) -> np.ndarray:
    scores = judged(logits_V, admit)
    probabilities: np.ndarray = (
        warpers(admit.sampling)(torch.zeros(1, 1, dtype=torch.int64), scores[None])[0].double().softmax(0).numpy()
    )
    return probabilities


def check(counts: np.ndarray, probabilities: np.ndarray) -> None:
    assert counts[probabilities == 0].sum() == 0, "an id without a probability was drawn"
    expected = probabilities * counts.sum()
    rare = (expected < LEAST_EXPECTED) & (probabilities > 0)
    common = ~rare & (probabilities > 0)
    observed, wanted = counts[common], expected[common]
    if rare.any():
        observed, wanted = np.append(observed, counts[rare].sum()), np.append(wanted, expected[rare].sum())
    degrees = len(observed) - 1
    if degrees:
        statistic = ((observed - wanted) ** 2 / wanted).sum()
        spread = 2 / (9 * degrees)
        assert statistic < degrees * (1 - spread + _Z_OF_A_THOUSANDTH * spread**0.5) ** 3


@pytest.mark.parametrize(
    ("sampler", "number", "by"),
    [
        *(("native", number, by) for number in range(len(SETS)) for by in ("positions", "seeds")),
        # Slower; that they agree with the other is shown elsewhere.
        *((name, number, "positions") for name in ("numpy", "reference") for number in (6, 11)),
    ],
    indirect=["sampler"],
)
def test_draws_have_the_exact_distribution(number: int, by: str, sampler: TokenSampler) -> None:
    """Of one sequence's positions, and of the neighbouring seeds that `n` outputs of requests have."""
    kind, filters = SETS[number]
    generator = np.random.default_rng(1000 + number)
    draw = DrawnAdmits(generator, VOCAB_SIZE)
    while True:
        admit = draw.draw(kind, **filters)
        logits_V = torch.from_numpy((generator.standard_normal(VOCAB_SIZE) * 2).astype(np.float32))
        probabilities = distribution(admit, logits_V)
        if np.isfinite(probabilities).all() and (probabilities > 0.01).sum() > 2:
            break
    processed = logits_V.clone()
    Processors(admit, VOCAB_SIZE).apply(processed.numpy(), unpack(admit.tokens))
    rows = np.full(PER_CALL, row_of(admit.sampling))
    logits_SV = processed.repeat(PER_CALL, 1)
    counts = np.zeros(VOCAB_SIZE, np.int64)
    for first in range(0, NUM_DRAWS, PER_CALL):
        numbers = np.arange(first, first + PER_CALL)
        if by == "seeds":
            rows["seed"] = admit.sampling.seed + numbers.astype(np.uint64)
            positions = np.full(PER_CALL, 17, np.int32)
        else:
            positions = numbers.astype(np.int32)
        counts += np.bincount(sampler.sample(logits_SV, rows, positions), minlength=VOCAB_SIZE)
    check(counts, probabilities)
