"""Rotation with the KV write, interpreted in fp32, against its definition in torch."""

import pytest
import torch

from pagewire.worker.kernels.reference.elementwise import rotate_and_store as reference
from pagewire.worker.kernels.triton.elementwise import rotate_and_store

NUM_BLOCKS, NUM_POSITIONS = 6, 40


def run(
    num_heads: int, num_kv_heads: int, head_dim: int, block_size: int, kv_positions: list[int], has_norm: bool
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """(q, layer) by the kernel and by its definition, over a layer that was not empty."""
    torch.manual_seed(head_dim)
    num_rows = len(kv_positions)
    qkv = torch.randn(num_rows, (num_heads + 2 * num_kv_heads) * head_dim)
    weight_JD = torch.randn(num_heads + num_kv_heads, head_dim) if has_norm else None
    angles = torch.randn(NUM_POSITIONS, head_dim // 2)
    cos_sin_PD = torch.cat((angles.cos(), angles.sin()), dim=1)
    positions_T = torch.randint(0, NUM_POSITIONS, (num_rows,))
    layer = torch.randn(2, NUM_BLOCKS, num_kv_heads, block_size, head_dim)
    results = []
    for kernel in (rotate_and_store, reference):
        ours, kv = qkv.clone(), layer.clone()
        kernel(ours, weight_JD, 0.1, cos_sin_PD, positions_T, torch.tensor(kv_positions, dtype=torch.int64), kv)
        results.append((ours[:, : num_heads * head_dim], kv))
    return results[0], results[1]


@pytest.mark.parametrize("has_norm", [True, False], ids=["qk-norm", "plain"])
@pytest.mark.parametrize("block_size", [1, 4])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"), [(1, 1, 2), (6, 2, 16), (5, 5, 64), (7, 1, 80), (9, 3, 96), (16, 8, 128)]
)
def test_agrees_with_its_definition(
    num_heads: int, num_kv_heads: int, head_dim: int, block_size: int, has_norm: bool
) -> None:
    last = NUM_BLOCKS * block_size - 1
    (q, kv), (expected_q, expected_kv) = run(
        num_heads, num_kv_heads, head_dim, block_size, [last, -1, 0, last // 2, -1], has_norm
    )
    torch.testing.assert_close(q, expected_q, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(kv, expected_kv, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("kv_positions", [[], [-1], [3], [-1, -1, -1]], ids=str)
def test_few_rows(kv_positions: list[int]) -> None:
    (q, kv), (expected_q, expected_kv) = run(3, 1, 16, 4, kv_positions, True)
    torch.testing.assert_close(q, expected_q, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(kv, expected_kv, rtol=2e-6, atol=2e-6)


def test_values_pass_unchanged_and_other_kv_positions_are_left_alone() -> None:
    torch.manual_seed(1)
    num_heads, num_kv_heads, head_dim, block_size = 4, 2, 16, 4
    qkv = torch.randn(2, 8 * head_dim)
    values = qkv[0, 6 * head_dim :].reshape(num_kv_heads, head_dim).clone()
    layer = torch.full((2, NUM_BLOCKS, num_kv_heads, block_size, head_dim), 7.0)
    kv_positions_T, positions_T = torch.tensor([2 * block_size + 3, -1]), torch.tensor([5, 6])
    rotate_and_store(qkv, None, 0.0, torch.randn(NUM_POSITIONS, head_dim), positions_T, kv_positions_T, layer)
    assert torch.equal(layer[1, 2, :, 3], values)
    assert num_heads * head_dim == 64
    assert (layer != 7).sum() == 2 * num_kv_heads * head_dim
