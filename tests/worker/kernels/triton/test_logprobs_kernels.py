"""Log-probabilities, interpreted in fp32, against their definition in torch."""

import pytest
import torch

from pagewire.wire.plan import NO_TOKEN
from pagewire.worker.kernels.reference.logprobs import logprobs as reference
from pagewire.worker.kernels.triton.logprobs import logprobs
from pagewire.worker.kernels.workspaces import LogprobsWorkspace

# Of extreme rows: the interpreter computes with numpy, which warns.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

Results = tuple[torch.Tensor, ...]


def run(
    kernel: object, logits_SV: torch.Tensor, tokens_S: torch.Tensor, num_top: int, chunk: int = 64, num_named: int = 3
) -> Results:
    """Every row, in reversed order; of each its token, the named ids and the likeliest."""
    num_rows, vocab_size = logits_SV.shape
    workspace = LogprobsWorkspace.allocate(max(num_rows, 1), vocab_size, torch.device("cpu"), chunk=chunk)
    rows_S = torch.arange(num_rows, dtype=torch.int32).flip(0)
    named_SM = (torch.arange(num_rows * num_named, dtype=torch.int32).view(num_rows, num_named) * 7) % vocab_size
    named_SM[:, 1:2] = NO_TOKEN
    results = (
        torch.full((num_rows,), 9.0),
        torch.full((num_rows, num_named), 9.0),
        torch.full((num_rows, num_top), 9, dtype=torch.int32),
        torch.full((num_rows, num_top), 9.0),
    )
    kernel(logits_SV, rows_S, tokens_S.flip(0), named_SM.flip(0), *results, workspace=workspace)
    return tuple(result.flip(0) for result in results)


@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
@pytest.mark.parametrize("vocab_size", [1, 7, 64, 65, 700])
@pytest.mark.parametrize("quantum", [False, True], ids=["distinct", "ties"])
def test_agrees_with_its_definition(vocab_size: int, num_top: int, quantum: bool) -> None:
    torch.manual_seed(vocab_size)
    logits_SV = 4 * torch.randn(4, vocab_size)
    if quantum:
        logits_SV = logits_SV.round()
    tokens_S = torch.tensor([0, vocab_size - 1, vocab_size // 2, NO_TOKEN])
    ours, theirs = (
        run(kernel, logits_SV, tokens_S, num_top, num_named=num_top % 4) for kernel in (logprobs, reference)
    )
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert ours[0][3].isnan()


def test_minus_infinity_and_rows_that_are_no_distribution() -> None:
    torch.manual_seed(1)
    logits_SV = torch.randn(5, 300)
    logits_SV[0, :290] = -torch.inf  # whole chunks
    logits_SV[1, 3] = torch.nan
    logits_SV[2, 299] = torch.inf
    logits_SV[3] = -torch.inf
    tokens_S = torch.tensor([5, 5, 5, 5, 5], dtype=torch.int32)
    ours, theirs = (run(kernel, logits_SV, tokens_S, 20) for kernel in (logprobs, reference))
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert ours[0][0] == -torch.inf
    assert (ours[2][0, :10] >= 290).all()
    assert ours[2][0, 10:].tolist() == [NO_TOKEN] * 10
    assert ours[2][1:4].unique().tolist() == [NO_TOKEN]
    assert ours[3][1:4].isnan().all()
    assert ours[1][1:4].isnan().all()


def test_probabilities_are_those_of_softmax() -> None:
    torch.manual_seed(2)
    logits_SV = 3 * torch.randn(3, 20)
    chosen_S, named_SM, ids_SN, top_SN = run(logprobs, logits_SV, torch.tensor([4, 5, 6]), 20)
    expected_SV = logits_SV.softmax(1)
    torch.testing.assert_close(top_SN.exp(), expected_SV.gather(1, ids_SN.long()))
    torch.testing.assert_close(chosen_S.exp(), expected_SV[[0, 1, 2], [4, 5, 6]])
    torch.testing.assert_close(named_SM[:, 2].exp(), expected_SV[[0, 1, 2], [14, 35 % 20, 56 % 20]])
    assert (top_SN.diff(dim=1) <= 0).all()


def test_chunks_of_a_model() -> None:
    torch.manual_seed(3)
    logits_SV = 3 * torch.randn(1, 5000)
    ours, theirs = (run(kernel, logits_SV, torch.tensor([4999]), 5, chunk=2048) for kernel in (logprobs, reference))
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="21 likeliest ids; at most 20"):
        run(logprobs, torch.zeros(1, 300), torch.tensor([0]), 21)
    assert run(logprobs, torch.zeros(0, 300), torch.tensor([], dtype=torch.int64), 2)[2].shape == (0, 2)
