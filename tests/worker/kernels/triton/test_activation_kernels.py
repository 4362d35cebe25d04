"""The gated activation, interpreted in fp32, against its definition in torch."""

import pytest
import torch

from pagewire.worker.kernels.reference.elementwise import silu_mul as reference
from pagewire.worker.kernels.triton.elementwise import silu_mul


@pytest.mark.parametrize(("num_rows", "width"), [(1, 1), (1, 96), (3, 100), (2, 1024), (4, 3000), (0, 64)])
def test_agrees_with_its_definition(num_rows: int, width: int) -> None:
    torch.manual_seed(width)
    gate_up = 5 * torch.randn(num_rows, 2 * width)
    out_TF, expected_TF = torch.full((2, num_rows, width), torch.nan)
    reference(gate_up, expected_TF)
    silu_mul(gate_up, out_TF)
    torch.testing.assert_close(out_TF, expected_TF, rtol=2e-6, atol=2e-6)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_extreme_values() -> None:
    gate = torch.tensor([[-1e30, -100.0, -88.0, -0.0, 88.0, 1e30, float("inf"), float("nan")]])
    out_TF, expected_TF = torch.empty(2, 1, 8)
    reference(torch.cat([gate, torch.ones_like(gate)], 1), expected_TF)
    silu_mul(torch.cat([gate, torch.ones_like(gate)], 1), out_TF)
    torch.testing.assert_close(out_TF, expected_TF, equal_nan=True, rtol=1e-6, atol=1e-35)
