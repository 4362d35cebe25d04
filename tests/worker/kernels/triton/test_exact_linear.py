"""Exact linears: against the definition, and a row's bits beside other rows and alone."""

from dataclasses import replace

import pytest
import torch
from support.host_device import EagerCapture

from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.kernels.reference import skinny
from pagewire.worker.kernels.sets import exact_kernels
from pagewire.worker.kernels.triton.exact_linear import linear, linear_tiles
from pagewire.worker.linears import exact
from pagewire.worker.linears.exact import ExactLinears, trial

CPU = torch.device("cpu")


def values(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("num_rows", "width", "num_outputs"), [(1, 32, 32), (33, 80, 45), (300, 64, 33), (2, 100, 7)])
def test_definition(num_rows: int, width: int, num_outputs: int, has_bias: bool) -> None:
    x, weight = values(num_rows, width), values(num_outputs, width)
    bias = values(num_outputs) if has_bias else None
    ours, theirs = (torch.full((num_rows, num_outputs), float("nan")) for _ in range(2))
    linear(x, weight, bias, ours)
    skinny.linear(x, weight, bias, theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_bf16_into_fp32() -> None:
    x, weight = values(5, 64, dtype=torch.bfloat16), values(40, 64, dtype=torch.bfloat16)
    ours, theirs = torch.empty(5, 40), torch.empty(5, 40)
    linear(x, weight, None, ours)
    skinny.linear(x, weight, None, theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("rows_alone")
def test_a_row_s_bits_do_not_depend_on_the_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_TRIED_ROWS", (1, 33, 64))
    assert trial(exact_kernels(overlap=False), CPU, torch.float32, EagerCapture().capture) == ""


def test_a_library_whose_bits_do_is_found_out() -> None:
    def by_number(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        """Sums the width in two parts where rows are few."""
        skinny.linear(x, weight, bias, out)
        if len(x) < 64:
            half = weight.shape[1] // 2
            out.copy_(x[:, :half] @ weight[:, :half].T + x[:, half:] @ weight[:, half:].T)
            out += 0 if bias is None else bias

    kernels: Kernels = replace(exact_kernels(overlap=False), linear=by_number)
    assert trial(kernels, CPU, torch.float32, EagerCapture().capture).endswith(
        "values of 1 rows differ from the same beside others"
    )


def test_every_number_of_rows_has_tiles_whose_products_are_the_same_instruction() -> None:
    for num_outputs in (48, 1024, 6144, 151_936):
        for shared in (99 << 10, 227 << 10):
            tiles = linear_tiles(num_outputs, 2, shared)
            assert [most for most, _ in tiles] == sorted(most for most, _ in tiles)
            assert tiles[-1][0] == (1 << 31) - 1
            for _, tile in tiles:
                assert (tile.rows % 64, tile.depth % 16, tile.outputs % 8, tile.num_warps % 4) == (0, 0, 0, 0)


def test_a_tied_matrix_is_shared() -> None:
    table = values(20, 16)
    embedding, head = ExactLinears(exact_kernels(overlap=False), CPU).tied(table)
    assert (embedding.num_bytes, head.num_bytes) == (table.nbytes, table.nbytes)
    x = embedding(torch.tensor([3, 7]))
    torch.testing.assert_close(head(x), x @ table.T)
