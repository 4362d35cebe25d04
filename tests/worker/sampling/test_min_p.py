"""Min-p of the samplers in torch against transformers' processors; the others have tests like these."""

import pytest
import torch
from support.min_p import NUM_ROWS, VOCAB_SIZE, min_p_rows

from pagewire.wire.columns import words_of
from pagewire.worker.kernels.reference.sampling import sample
from pagewire.worker.kernels.workspaces import SamplingWorkspace
from pagewire.worker.sampling.sampler import Sampler


@pytest.mark.parametrize("seed", range(4))
def test_numpy_s_sampler_draws_as_transformers_processes(seed: int) -> None:
    rows = min_p_rows(seed)
    rows.check(Sampler(VOCAB_SIZE).sample(rows.logits_SV, rows.asked, rows.positions))


@pytest.mark.parametrize("seed", range(4))
def test_the_reference_kernel_draws_as_transformers_processes(seed: int) -> None:
    rows = min_p_rows(seed)
    tokens_S = torch.empty(NUM_ROWS, dtype=torch.int32)
    workspace = SamplingWorkspace.allocate(NUM_ROWS, VOCAB_SIZE, torch.device("cpu"))
    sampling_SP = torch.from_numpy(words_of(rows.asked))
    sample(rows.logits_SV, sampling_SP, torch.from_numpy(rows.positions), tokens_S, workspace=workspace)
    rows.check(tokens_S.numpy())
