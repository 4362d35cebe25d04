"""Sampling, interpreted in fp32, against its definition in torch.

Only the exponential may differ between the two, by its last bit: of the draws here, at most one per case falls so close
to an edge. Most cases use chunks of 64 ids, so that a small vocabulary has many, and a list of 64 candidates, so that
some rows are searched in the list and others in the row.
"""

import os

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from support.min_p import VOCAB_SIZE, min_p_rows
from support.sampling_rows import SETTINGS, DeviceRows, device_rows, rows_at_quarters, tokens_of

from pagewire.wire.columns import words_of
from pagewire.wire.plan import NO_TOKEN
from pagewire.worker.kernels.reference.sampling import sample as reference
from pagewire.worker.kernels.triton import sampling
from pagewire.worker.kernels.triton.sampling import sample
from pagewire.worker.kernels.triton.weights import scaled_draw, top_p_target
from pagewire.worker.kernels.workspaces import SamplingWorkspace

# Of extreme rows: the interpreter computes with numpy, which warns.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

REPEATS = int(os.environ.get("PAGEWIRE_TEST_REPEATS", "1"))
INF, NAN = float("inf"), float("nan")
CPU = torch.device("cpu")


@triton.jit
def _write_products(total_ptr, draw_ptr, share_ptr, target_ptr, passed_ptr, NUM: tl.constexpr):
    index = tl.arange(0, NUM)
    total = tl.load(total_ptr + index)
    tl.store(target_ptr + index, top_p_target(total, tl.load(share_ptr + index)))
    tl.store(passed_ptr + index, scaled_draw(total, tl.load(draw_ptr + index)))


def workspace_for(vocab_size: int, max_rows: int = 64, chunk: int = 64, max_candidates: int = 64) -> SamplingWorkspace:
    """Full of what a step before may have left."""
    workspace = SamplingWorkspace.allocate(max_rows, vocab_size, CPU, chunk=chunk, max_candidates=max_candidates)
    for part in (workspace.chunk_mass_SC, workspace.bins_SN, workspace.num_candidates_S, workspace.candidates_SN):
        part.fill_(99)
    return workspace


def ours(logits_SV: torch.Tensor, rows: DeviceRows) -> list[int]:
    return tokens_of(sample, logits_SV, rows, workspace_for(logits_SV.shape[1]))


def num_differing(first: list[int], second: list[int]) -> int:
    return sum(1 for one, other in zip(first, second, strict=True) if one != other)


@pytest.mark.parametrize(("vocab_size", "spread"), [(1, 3.0), (7, 3.0), (64, 30.0), (65, 3.0), (400, 0.1), (400, 3.0)])
def test_tokens_are_those_of_the_definition(vocab_size: int, spread: float) -> None:
    torch.manual_seed(vocab_size)
    rows = device_rows(SETTINGS)
    logits_SV = spread * torch.randn(len(SETTINGS), vocab_size)
    tokens = ours(logits_SV, rows)
    assert num_differing(tokens, tokens_of(reference, logits_SV, rows)) <= 1
    assert all(0 <= token < vocab_size for token in tokens)


def test_many_equal_logits() -> None:
    torch.manual_seed(0)
    rows = device_rows(SETTINGS)
    logits_SV = (2 * torch.randn(len(SETTINGS), 300)).round()
    assert ours(logits_SV, rows) == tokens_of(reference, logits_SV, rows)


def test_a_vocabulary_of_a_model_in_its_real_chunks() -> None:
    """Peaked, as a model's logits are, and flat, so that top-p leaves too many candidates to write down."""
    torch.manual_seed(1)
    settings = [(1.0, 0, 1.0), (0.6, 20, 0.95), (1.0, 0, 0.9), (0.0, 0, 1.0), (1.0, 0, 0.8)]
    logits_SV = torch.cat([3 * torch.randn(4, 20_011), 0.1 * torch.randn(1, 20_011)])
    rows = device_rows(settings)
    workspace = SamplingWorkspace.allocate(5, 20_011, CPU)
    assert tokens_of(sample, logits_SV, rows, workspace) == tokens_of(reference, logits_SV, rows)
    num_candidates = workspace.num_candidates_S.tolist()
    assert 20 <= num_candidates[1] < 100, "top-k looks at few"
    assert num_candidates[4] > workspace.candidates_SN.shape[1], "this row was to be searched in place"


@pytest.mark.parametrize(("chunk", "max_candidates"), [(16, 1), (256, 32), (64, 512)])
def test_neither_chunks_nor_neighbours_nor_the_batch_size_change_a_token(chunk: int, max_candidates: int) -> None:
    torch.manual_seed(2)
    rows = device_rows(SETTINGS)
    logits_SV = 3 * torch.randn(len(SETTINGS), 300)
    expected = ours(logits_SV, rows)
    workspace = workspace_for(300, chunk=chunk, max_candidates=max_candidates)
    order = list(reversed(range(len(SETTINGS))))
    reversed_tokens = tokens_of(sample, logits_SV[order], rows.select(order), workspace)
    assert reversed_tokens == [expected[row] for row in order]
    for row in (3, 6, 7):
        assert tokens_of(sample, logits_SV[[row]], rows.select([row]), workspace) == [expected[row]]


@pytest.mark.parametrize("num_programs", [1, 30, 60])
def test_programs_that_take_several_chunks(num_programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 7: all of them, 4 and 3, and 2 each but for the last. So many rows have a program per chunk otherwise."""
    torch.manual_seed(5)
    rows = device_rows(SETTINGS)
    logits_SV = 3 * torch.randn(len(SETTINGS), 400)
    logits_SV[-1, 399] = NAN
    expected = ours(logits_SV, rows)
    monkeypatch.setattr(sampling, "WEIGHING_PROGRAMS", num_programs)
    monkeypatch.setattr(sampling, "PICKING_PROGRAMS", num_programs)
    assert ours(logits_SV, rows) == expected


def test_ties_go_to_the_lowest_id() -> None:
    logits_SV = torch.zeros(6, 300)
    logits_SV[1, 130:] = 2.0
    logits_SV[2, [299, 200, 201]] = 1.0
    logits_SV[3] = -INF
    logits_SV[3, 170] = -1e30
    logits_SV[4, ::2] = -0.0
    logits_SV[5, 1::2] = -0.0
    for setting in ((0.0, 0, 1.0), (1.0, 1, 1.0), (1.0, 0, 1e-9)):
        assert ours(logits_SV, device_rows([setting] * 6)) == [0, 130, 200, 170, 0, 0], setting


def test_top_k_and_top_p_keep_the_lower_ids_among_equals() -> None:
    logits_SV = torch.full((1, 300), -INF)
    logits_SV[:, [10, 100, 200, 299]] = 1.0
    logits_SV = logits_SV.expand(12, -1)
    for setting, kept in (((1.0, 2, 1.0), {10, 100}), ((1.0, 0, 0.5), {10, 100}), ((1.0, 0, 0.51), {10, 100, 200})):
        assert set(ours(logits_SV, device_rows([setting] * 12))) == kept, setting


@pytest.mark.parametrize("setting", [(1.0, 0, 1.0), (1.0, 4, 1.0), (1.0, 0, 0.999)], ids=str)
def test_a_draw_on_an_edge_takes_the_id_after_it(setting: tuple[float, int, float]) -> None:
    logits_SV = torch.full((4, 300), -INF)
    logits_SV[:, [70, 100, 200, 299]] = 1.0
    assert ours(logits_SV, rows_at_quarters(setting)) == [70, 100, 200, 299]


def test_products_of_integers_are_exact() -> None:
    generator = np.random.default_rng(0)
    totals = [1, 2**24 - 1, 2**42, 2**62, *generator.integers(1, 2**62, 60).tolist()]
    draws = [0, 1, 2**24 - 1, 2**23, *generator.integers(0, 2**24, 60).tolist()]
    shares = torch.tensor([0.5, 0.95, 0.1, 1 - 2**-24, *generator.random(60).tolist()])
    targets, passed = torch.zeros(2, 64, dtype=torch.int64)
    _write_products[(1,)](torch.tensor(totals), torch.tensor(draws), shares, targets, passed, NUM=64)
    exact = [int(share * 2**31) for share in shares.double().tolist()]
    assert passed.tolist() == [total * draw >> 24 for total, draw in zip(totals, draws, strict=True)]
    assert targets.tolist() == [max(1, -(-total * share >> 31)) for total, share in zip(totals, exact, strict=True)]


def test_top_p_counts_shares_of_what_top_k_kept() -> None:
    logits_SV = torch.zeros(12, 300)
    logits_SV[:, 5], logits_SV[:, 6] = 2.0, 1.0  # of all 300: 2.4% and 0.9%; of the top 2: 73% and 27%
    assert set(ours(logits_SV, device_rows([(1.0, 2, 0.7)] * 12))) == {5}
    assert set(ours(logits_SV, device_rows([(1.0, 2, 0.8)] * 12))) == {5, 6}


def test_a_row_that_is_no_distribution_harms_no_other() -> None:
    torch.manual_seed(3)
    rows = device_rows(SETTINGS)
    logits_SV = 3 * torch.randn(len(SETTINGS), 300)
    expected = ours(logits_SV, rows)
    logits_SV[0::4, 299] = NAN
    logits_SV[1::4, 5] = INF
    logits_SV[2::4] = -INF
    tokens = ours(logits_SV, rows)
    assert tokens == [expected[row] if row % 4 == 3 else NO_TOKEN for row in range(len(SETTINGS))]
    assert tokens == tokens_of(reference, logits_SV, rows)


def test_minus_infinity_is_an_ordinary_probability_of_zero() -> None:
    logits_SV = torch.full((8, 300), -INF)
    logits_SV[:, [3, 128, 255]] = 1.0
    for setting in ((1.0, 0, 1.0), (1.0, 200, 1.0), (1.0, 0, 0.99), (100.0, 200, 0.99)):
        assert set(ours(logits_SV, device_rows([setting] * 8))) <= {3, 128, 255}, setting


def test_strided_rows_and_bf16_logits() -> None:
    """bf16 is only read here, which the interpreter does right."""
    torch.manual_seed(4)
    rows = device_rows(SETTINGS)
    logits_SV = (3 * torch.randn(len(SETTINGS), 400)).to(torch.bfloat16)
    tokens = ours(logits_SV[:, :333], rows)
    assert tokens == ours(logits_SV[:, :333].float().contiguous(), rows)


def test_no_rows() -> None:
    assert ours(torch.empty(0, 300), device_rows([(1.0, 0, 1.0)]).select([])) == []


def test_what_does_not_fit_the_workspace_is_refused() -> None:
    rows = device_rows([(1.0, 0, 1.0)] * 2)
    with pytest.raises(ValueError, match="2 rows to sample; the workspace is for 1"):
        tokens_of(sample, torch.zeros(2, 300), rows, workspace_for(300, max_rows=1))
    with pytest.raises(ValueError, match="logits have 300 ids, the workspace 301"):
        tokens_of(sample, torch.zeros(2, 300), rows, workspace_for(301))
    with pytest.raises(ValueError, match="sampling has 2 entries for 1 rows of logits"):
        tokens_of(sample, torch.zeros(1, 300), rows)
    with pytest.raises(ValueError, match="sampling has 2 entries for 3 rows of logits"):
        tokens_of(sample, torch.zeros(3, 300), rows)
    with pytest.raises(ValueError, match="vocab_size is 1048577; sampling takes 1 to 1048576"):
        SamplingWorkspace.allocate(1, (1 << 20) + 1, CPU)


@pytest.mark.parametrize(("max_candidates", "first"), [(32, 0), (512, 500)])
def test_min_p_draws_as_transformers_processes(max_candidates: int, first: int) -> None:
    rows = min_p_rows(seed=0).part(slice(first, first + min(500, 100 * REPEATS)))
    num_rows = len(rows.asked)
    workspace = workspace_for(VOCAB_SIZE, max_rows=num_rows, max_candidates=max_candidates)
    tokens_S = torch.empty(num_rows, dtype=torch.int32)
    sampling_SP = torch.from_numpy(words_of(rows.asked))
    sample(rows.logits_SV, sampling_SP, torch.from_numpy(rows.positions), tokens_S, workspace=workspace)
    rows.check(tokens_S.numpy())
