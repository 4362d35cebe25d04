"""The backend with its real kernels, as the choice of attention builds it."""

import importlib

import pytest
import torch
from support.paged_world import Heads, PagedWorld, attention_config

from pagewire.worker.attention.choice import AttentionNeeds, CudaCard, attention_candidates, choose_attention
from pagewire.worker.kernels.sets import triton_kernels

CARD = CudaCard(name="interpreter", capability=(8, 0), num_sms=4)


@pytest.mark.parametrize(
    "sequences",
    [
        [(1, 1), (1, 200), (1, 0)],
        [(5, 5), (2, 70)],
        [(1, 150), (1, 1), (4, 4), (3, 70), (1, 3)],
    ],
    ids=["decodes", "prompts", "mixed"],
)
def test_a_step(sequences: list[tuple[int, int]]) -> None:
    heads = Heads(6, 2, 32)
    world = PagedWorld(heads, 64, sequences)
    needs = AttentionNeeds(
        config=attention_config(heads),
        dtype=torch.float32,
        device=torch.device("cpu"),
        max_num_seqs=8,
        max_model_len=300,
        block_size=None,
        kernels=triton_kernels(overlap=False),
    )
    backend = choose_attention(attention_candidates(CARD, importlib.import_module), "triton", needs, CARD)
    assert (backend.name, backend.default_block_size) == ("triton", 64)
    batch, kv = world.batch()
    step = backend.begin(batch, kv)
    for _ in range(2):
        torch.testing.assert_close(step.attend(1, world.q), world.expected(), rtol=2e-5, atol=2e-5)
