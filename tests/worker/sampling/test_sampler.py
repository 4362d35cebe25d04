"""The sampler against a straightforward reference, and its promises: ties, neighbours, broken rows, distribution."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sampling_rows import sampling_rows

from pagewire.scheduler_svc.models.hf_generation import NARROWEST_TOP_P
from pagewire.wire.columns import Int32Array, SamplingRows
from pagewire.wire.plan import NO_TOKEN
from pagewire.worker.sampling.sampler import Sampler
from pagewire.worker.sampling.uniform import uniform

INF, NAN = float("inf"), float("nan")
OUT_OF_RANGE = [
    ("temperature", NAN),
    ("temperature", -1.0),
    ("top_p", NAN),
    ("top_p", -0.5),
    ("top_p", 1.5),
    ("top_k", -1),
    ("min_p", NAN),
    ("min_p", -0.5),
    ("min_p", 1.5),
]


Rows = tuple[SamplingRows, Int32Array]


def rows(
    count: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    positions: list[int] | None = None,
) -> Rows:
    """`count` rows that differ in position alone."""
    asked = sampling_rows(count, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    return asked, np.asarray(range(count) if positions is None else positions, np.int32)


def kept_ids(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Ids that top-k and top-p keep, ascending, and their weights, by a full sort in float64; and how far top-p was
    from keeping one more or less, as a share of the sum."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / np.float64(np.float32(temperature)))
    order = np.lexsort((np.arange(len(logits)), -logits))
    if top_k:
        order = order[:top_k]
    margin = 1.0
    if top_p < 1:
        running = weights[order].cumsum()
        beyond = running / running[-1] - np.float64(np.float32(top_p))
        order = order[: int(np.argmax(beyond >= 0)) + 1]
        margin = float(np.abs(beyond).min())
    ids = np.sort(order)
    return ids, weights[ids], margin


def reference_token(
    logits: np.ndarray, *, temperature: float, top_k: int, top_p: float, seed: int, position: int
) -> tuple[int, float]:
    """The documented rule, and how far top-p and the draw were from the border to another token, as a share of the
    sum."""
    if temperature == 0:
        return int(logits.argmax()), 1.0
    ids, weights, margin = kept_ids(logits, temperature, top_k, top_p)
    running = weights.cumsum() / weights.sum()
    draw = float(uniform(np.asarray([seed], np.uint64), np.asarray([position]))[0])
    return int(ids[np.argmax(running > draw)]), min(margin, float(np.abs(running - draw).min()))


@settings(max_examples=300, deadline=None)
@given(
    data_seed=st.integers(0, 2**32),
    vocab_size=st.sampled_from([1, 2, 127, 128, 129, 300, 1000]),
    spread=st.sampled_from([0.0, 0.5, 3.0, 30.0]),
    quantum=st.sampled_from([0.0, 1.0]),
    temperature=st.sampled_from([0.0, 0.1, 0.6, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 20, 200]),
    top_p=st.sampled_from([0.01, 0.5, 0.8, 0.95, 0.999, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)
def test_tokens_are_those_of_the_reference(
    data_seed: int,
    vocab_size: int,
    spread: float,
    quantum: float,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
) -> None:
    generator = np.random.default_rng(data_seed)
    logits = (generator.standard_normal((4, vocab_size)) * spread).astype(np.float32)
    if quantum:
        logits = np.round(logits)  # many ties
    top_k = top_k if top_k < vocab_size else 0
    parameters = rows(4, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    tokens = Sampler(vocab_size).sample(torch.from_numpy(logits), *parameters)
    for row, token in enumerate(tokens.tolist()):
        expected, margin = reference_token(
            logits[row], temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, position=row
        )
        # Within float32's rounding of a border, either side is right.
        assert token == expected or margin < 1e-5


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = torch.zeros(3, 1000)
    logits[0, [300, 301, 700]] = 5.0
    logits[1, [127, 128]] = 5.0
    assert Sampler(1000).sample(logits, *rows(3, temperature=0)).tolist() == [300, 127, 0]


def test_top_k_keeps_the_lower_ids_among_equals() -> None:
    logits = torch.zeros(500, 1000)
    logits[:, [900, 3, 260, 261, 262]] = 5.0
    logits[:, 999] = 6.0
    tokens = Sampler(1000).sample(logits, *rows(500, top_k=4))
    assert set(tokens.tolist()) == {3, 260, 261, 999}


def test_top_p_keeps_the_lower_ids_among_equals() -> None:
    logits = torch.full((500, 1000), -INF)
    logits[:, [10, 200, 300, 999]] = 1.0
    assert set(Sampler(1000).sample(logits, *rows(500, top_p=0.5)).tolist()) == {10, 200}
    assert set(Sampler(1000).sample(logits, *rows(500, top_p=0.51)).tolist()) == {10, 200, 300}


@pytest.mark.parametrize("vocab_size", [8, 152_000])
@pytest.mark.parametrize("top_k", [0, 4])
def test_the_narrowest_top_p_keeps_one_token(vocab_size: int, top_k: int) -> None:
    """What a model's own top_p of 0 becomes, also where all tokens are equally likely."""
    logits = torch.zeros(20, vocab_size)
    tokens = Sampler(vocab_size).sample(logits, *rows(20, top_k=top_k, top_p=NARROWEST_TOP_P))
    assert set(tokens.tolist()) == {0}


def test_top_p_counts_shares_of_what_top_k_kept() -> None:
    logits = torch.full((500, 300), 0.0)
    logits[:, 5], logits[:, 6] = 2.0, 1.0  # of all 300: 2.4% and 0.9%; of the top 2: 73% and 27%
    assert set(Sampler(300).sample(logits, *rows(500, top_k=2, top_p=0.7)).tolist()) == {5}
    assert set(Sampler(300).sample(logits, *rows(500, top_k=2, top_p=0.8)).tolist()) == {5, 6}


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (0, 0.9), (20, 1.0), (20, 0.8)])
def test_distribution(top_k: int, top_p: float) -> None:
    """Chi-square of 20,000 draws at fixed seeds against the exact probabilities."""
    num_draws, vocab_size = 20_000, 200
    logits = (np.random.default_rng(7).standard_normal(vocab_size) * 1.5).astype(np.float32)
    ids, weights, _ = kept_ids(logits, 0.8, top_k, top_p)
    expected = num_draws * weights / weights.sum()
    parameters = rows(num_draws, temperature=0.8, top_k=top_k, top_p=top_p)
    parameters[0]["seed"][:] = np.arange(num_draws) % 100
    parameters[1][:] = np.arange(num_draws) // 100
    tokens = Sampler(vocab_size).sample(torch.from_numpy(logits).expand(num_draws, -1), *parameters)
    counts = np.bincount(tokens, minlength=vocab_size)
    assert counts.sum() == counts[ids].sum()
    rare = expected < 8
    observed = np.append(counts[ids][~rare], counts[ids][rare].sum())
    expected = np.append(expected[~rare], max(expected[rare].sum(), 1e-9))
    degrees = len(observed) - 1
    chi_square = ((observed - expected)[expected > 1e-6] ** 2 / expected[expected > 1e-6]).sum()
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("vocab_size", [1000, 49_152])
def test_neighbours_slot_and_thread_count_do_not_matter(vocab_size: int, threads: int) -> None:
    generator = np.random.default_rng(3)
    logits = torch.from_numpy((generator.standard_normal((24, vocab_size)) * 2).astype(np.float32))
    asked = sampling_rows(
        24,
        temperature=generator.choice([0.0, 0.6, 1.0], 24),
        top_k=generator.choice([0, 20], 24),
        top_p=generator.choice([1.0, 0.8], 24),
        seed=generator.integers(0, 2**63, 24),
    )
    positions = generator.integers(0, 1000, 24).astype(np.int32)

    def sample(order: np.ndarray) -> list[int]:
        return Sampler(vocab_size).sample(logits[torch.from_numpy(order)], asked[order], positions[order]).tolist()

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = [sample(np.asarray([row]))[0] for row in range(24)]
    torch.set_num_threads(threads)
    try:
        assert sample(np.arange(24)) == alone
        shuffled = generator.permutation(24)
        assert sample(shuffled) == [alone[row] for row in shuffled]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (0, 0.9), (5, 0.9)])
def test_a_row_that_is_no_distribution_harms_no_other(temperature: float, top_k: int, top_p: float) -> None:
    parameters = rows(6, temperature=temperature, top_k=top_k, top_p=top_p)
    logits = torch.from_numpy(np.random.default_rng(1).standard_normal((6, 300)).astype(np.float32))
    good = Sampler(300).sample(logits, *parameters).tolist()
    logits[1, 17] = NAN
    logits[2, 299] = INF
    logits[3] = -INF
    logits[4] = NAN
    sampler = Sampler(300)
    assert sampler.sample(logits, *parameters).tolist() == [good[0], *[NO_TOKEN] * 4, good[5]]
    alone = rows(1, temperature=temperature, top_k=top_k, top_p=top_p)
    assert sampler.sample(logits[:1], *alone).tolist() == good[:1]


def test_minus_infinity_is_an_ordinary_probability_of_zero() -> None:
    logits = torch.full((200, 300), -INF)
    logits[:, [140, 299]] = 0.0
    for top_k, top_p in ((0, 1.0), (0, 0.99), (200, 1.0), (200, 0.99)):
        tokens = Sampler(300).sample(logits, *rows(200, top_k=top_k, top_p=top_p))
        assert set(tokens.tolist()) == {140, 299}


def test_extreme_temperatures() -> None:
    logits = torch.from_numpy(np.random.default_rng(2).standard_normal((50, 300)).astype(np.float32) * 10)
    greedy = Sampler(300).sample(logits, *rows(50, temperature=0)).tolist()
    assert Sampler(300).sample(logits, *rows(50, temperature=1e-38)).tolist() == greedy
    assert Sampler(300).sample(logits, *rows(50, temperature=1e-38, top_p=0.5)).tolist() == greedy
    assert len(set(Sampler(300).sample(logits, *rows(50, temperature=1e38)).tolist())) > 30


def test_no_rows() -> None:
    assert Sampler(300).sample(torch.empty(0, 300), *rows(0)).tolist() == []


@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE)
@pytest.mark.parametrize("top_k", [0, 5])
def test_parameters_out_of_range_draw_nothing_and_come_to_an_end(field: str, value: float, top_k: int) -> None:
    logits = torch.from_numpy(np.random.default_rng(3).standard_normal((3, 300)).astype(np.float32))
    parameters = rows(3, temperature=0.7, top_k=top_k, top_p=0.9)
    good = Sampler(300).sample(logits, *parameters).tolist()
    parameters[0][field][1] = value
    assert Sampler(300).sample(logits, *parameters).tolist() == [good[0], NO_TOKEN, good[2]]


def test_rows_that_are_not_as_many_as_the_logits_are_refused() -> None:
    for count in (1, 3):
        with pytest.raises(ValueError, match=rf"rows are .* \({count},\) for 2 rows of logits"):
            Sampler(300).sample(torch.zeros(2, 300), *rows(count))
    with pytest.raises(ValueError, match="logits have 299 ids; the sampler is for 300"):
        Sampler(300).sample(torch.zeros(2, 299), *rows(2))


def test_logits_are_only_read() -> None:
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    Sampler(300).sample(logits, *rows(2, temperature=0.5, top_p=0.9))
    assert torch.equal(logits, before)
