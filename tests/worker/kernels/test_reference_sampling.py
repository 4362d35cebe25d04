"""Sampling by integers, in torch, against the rule in float64 and against the CPU's sampler."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sampling_rows import SETTINGS, device_rows, rows_at_quarters, tokens_of

from pagewire.wire.plan import NO_TOKEN
from pagewire.worker.kernels.reference.sampling import sample, scaled_draw, top_p_target
from pagewire.worker.sampling.sampler import Sampler
from pagewire.worker.sampling.uniform import uniform

INF, NAN = float("inf"), float("nan")


def reference_token(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, seed: int, position: int
) -> tuple[int, float]:
    """The rule by a full sort in float64, and how near, as a share of the sum, the draw or top-p's border came to where
    another token would be right."""
    if temperature == 0:
        return int(logits.argmax()), 1.0
    weights = np.exp((logits.astype(np.float64) - logits.max()) / np.float64(np.float32(temperature)))
    order = np.lexsort((np.arange(len(logits)), -logits))
    margin = 1.0
    if top_k:
        order = order[:top_k]
    if top_p < 1:
        shares = weights[order].cumsum() / weights[order].sum()
        p = np.float64(np.float32(top_p))
        order = order[: int(np.argmax(shares >= p)) + 1]
        # A sum of equal weights may hit p exactly, and does so here and there.
        distances = np.abs(shares - p)
        margin = float(distances[distances > 0].min(initial=1.0))
    ids = np.sort(order)
    running = weights[ids].cumsum() / weights[ids].sum()
    draw = float(uniform(np.asarray([seed], np.uint64), np.asarray([position]))[0])
    return int(ids[np.argmax(running > draw)]), min(margin, float(np.abs(running - draw).min()))


@settings(max_examples=300, deadline=None)
@given(
    data_seed=st.integers(0, 2**32),
    vocab_size=st.sampled_from([1, 2, 127, 300]),
    spread=st.sampled_from([0.0, 0.5, 3.0, 30.0]),
    quantum=st.booleans(),
    temperature=st.sampled_from([0.0, 0.1, 0.6, 1.0, 5.0, 100.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 20, 200]),
    top_p=st.sampled_from([0.01, 0.5, 0.8, 0.95, 0.999, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)
def test_tokens_are_those_of_the_rule(
    data_seed: int,
    vocab_size: int,
    spread: float,
    quantum: bool,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
) -> None:
    logits = (np.random.default_rng(data_seed).standard_normal((4, vocab_size)) * spread).astype(np.float32)
    if quantum:
        logits = np.round(logits)  # many ties
    rows = device_rows([(temperature, top_k, top_p)] * 4)
    rows.seed_S.fill_(seed - 2**64 if seed >= 2**63 else seed)
    for row, token in enumerate(tokens_of(sample, torch.from_numpy(logits), rows)):
        expected, margin = reference_token(
            logits[row], temperature, top_k, top_p, seed, int(rows.position_S[row])
        )  # fmt: skip
        assert token == expected or margin < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab_size", [1, 7, 129, 5003])
def test_tokens_are_those_of_the_cpu(vocab_size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(vocab_size)
    rows = device_rows(SETTINGS * 20)
    logits_SV = (3 * torch.randn(len(rows.seed_S), vocab_size)).to(dtype)
    ours = np.asarray(tokens_of(sample, logits_SV, rows))
    theirs = Sampler(vocab_size).sample(logits_SV, *rows.for_sampler)
    assert (ours != theirs).sum() <= 2, "of 300 draws, so many may fall within a rounding error of an edge"


@pytest.mark.parametrize("setting", [(1.0, 0, 1.0), (1.0, 4, 1.0), (1.0, 0, 0.999)], ids=str)
def test_a_draw_on_an_edge_takes_the_id_after_it(setting: tuple[float, int, float]) -> None:
    logits_SV = torch.full((4, 300), -INF)
    logits_SV[:, [70, 100, 200, 299]] = 1.0
    rows = rows_at_quarters(setting)
    assert tokens_of(sample, logits_SV, rows) == [70, 100, 200, 299]
    assert Sampler(300).sample(logits_SV, *rows.for_sampler).tolist() == [70, 100, 200, 299]


def test_broken_rows() -> None:
    logits_SV = torch.randn(4, 300)
    rows = device_rows([(0.0, 0, 1.0), (1.0, 0, 1.0), (1.0, 20, 0.9), (1.0, 0, 0.9)])
    expected = tokens_of(sample, logits_SV, rows)
    logits_SV[0, 5], logits_SV[1, 6], logits_SV[2] = NAN, INF, -INF
    assert tokens_of(sample, logits_SV, rows) == [NO_TOKEN, NO_TOKEN, NO_TOKEN, expected[3]]


@pytest.mark.parametrize("num_rows", [1, 3])
def test_columns_that_are_not_as_long_as_the_logits_are_refused(num_rows: int) -> None:
    with pytest.raises(ValueError, match=f"sampling has 2 entries for {num_rows} rows of logits"):
        tokens_of(sample, torch.zeros(num_rows, 300), device_rows([(1.0, 0, 1.0)] * 2))


def test_products_of_integers_are_exact() -> None:
    generator = np.random.default_rng(0)
    totals = [1, 2**24 - 1, 2**42, 2**62, *generator.integers(1, 2**62, 200).tolist()]
    draws = [0, 1, 2**24 - 1, 2**23, *generator.integers(0, 2**24, 200).tolist()]
    assert scaled_draw(torch.tensor(totals), torch.tensor(draws)).tolist() == [
        total * draw >> 24 for total, draw in zip(totals, draws, strict=True)
    ]
    shares = torch.tensor([0.5, 0.95, 0.1, 1 - 2**-24, *generator.random(200).tolist()])
    exact = [int(share * 2**31) for share in shares.double().tolist()]
    assert top_p_target(torch.tensor(totals), shares).tolist() == [
        -(-total * share >> 31) for total, share in zip(totals, exact, strict=True)
    ]


def test_frequencies_follow_the_distribution() -> None:
    logits_V = torch.tensor([0.5, 2.0, -1.0, 1.0, 0.0] * 60)[:257]
    rows = device_rows([(1.0, 0, 1.0)] * 20_000)
    tokens = tokens_of(sample, logits_V.expand(20_000, -1), rows)
    frequencies = np.bincount(tokens, minlength=257) / 20_000
    assert np.abs(frequencies - logits_V.softmax(0).numpy()).max() < 0.004
