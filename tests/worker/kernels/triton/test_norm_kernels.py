"""Norm kernels, interpreted in fp32, against their definition in torch."""

import pytest
import torch

from pagewire.worker.kernels.reference import elementwise as reference
from pagewire.worker.kernels.triton import elementwise as kernels

# One row, odd sizes, one value, widths on and off powers of two, a model's width, and no row at all.
SHAPES = [(1, 1), (1, 48), (3, 64), (7, 65), (5, 1000), (2, 5120), (0, 64)]
FLOOR = 0.05


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)


def inputs(num_rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(width)
    return 3 * torch.randn(num_rows, width), torch.randn(num_rows, width), torch.randn(width)


@pytest.mark.parametrize(("num_rows", "width"), SHAPES)
def test_start(num_rows: int, width: int) -> None:
    rows_TE, _, weight_E = inputs(num_rows, width)
    x_TE, out_TE = torch.full((2, num_rows, width), torch.nan)
    expected_TE = torch.empty_like(out_TE)
    reference.start_rms_norm(rows_TE, torch.empty_like(x_TE), weight_E, FLOOR, expected_TE)
    kernels.start_rms_norm(rows_TE, x_TE, weight_E, FLOOR, out_TE)
    assert torch.equal(x_TE, rows_TE)
    assert_close(out_TE, expected_TE)


@pytest.mark.parametrize(("num_rows", "width"), SHAPES)
def test_add(num_rows: int, width: int) -> None:
    x_TE, delta_TE, weight_E = inputs(num_rows, width)
    expected_x_TE, expected_TE, out_TE = x_TE.clone(), torch.empty_like(x_TE), torch.full_like(x_TE, torch.nan)
    reference.add_rms_norm(expected_x_TE, delta_TE, weight_E, FLOOR, expected_TE)
    kernels.add_rms_norm(x_TE, delta_TE, weight_E, FLOOR, out_TE)
    assert torch.equal(x_TE, expected_x_TE)
    assert_close(out_TE, expected_TE)


def test_a_row_of_zeros_stays_zero() -> None:
    x_TE, out_TE = torch.zeros(2, 1, 40)
    kernels.add_rms_norm(x_TE, torch.zeros(1, 40), torch.ones(40), 40e-6, out_TE)
    assert torch.equal(out_TE, torch.zeros(1, 40))
