"""int8 linears against exact integer products, at every instruction set of this machine."""

import threading
from collections.abc import Callable

import pytest
import torch
from support.int8_reference import reference_int8

from pagewire.worker.linears.int8 import NativeInt8Linears
from pagewire.worker.native.library import MAX_INT8_K, NativeLibrary, load_library

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 1), (32, 64), (31, 33), (65, 7), (200, 301), (96, 128)]
ROWS = [1, 2, 5, 6, 7, 11, 12, 13, 25, 32, 61, 130]


def matrix(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """With a value now and then that stands out."""
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randn(shape, generator=generator)
    values[torch.rand(shape, generator=generator) < 0.01] *= 30
    return values.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
def test_sums_are_exact_for_any_number_of_rows(
    library: NativeLibrary, dtype: torch.dtype, shape: tuple[int, int], has_bias: bool
) -> None:
    weight = matrix(*shape, dtype=dtype)
    bias = matrix(shape[0], dtype=dtype) if has_bias else None
    linear = NativeInt8Linears(library, dtype).linear(weight, bias)
    x = matrix(max(ROWS), shape[1], dtype=dtype)
    expected = reference_int8(x, weight, bias)
    for num_rows in ROWS:
        y = linear(x[:num_rows])
        assert y.dtype == dtype
        tolerance = 1e-6 if dtype == torch.float32 else 2**-8
        torch.testing.assert_close(y.float(), expected[:num_rows], rtol=tolerance, atol=1e-5)


def test_the_product_is_near_that_of_the_model_s_own_numbers(library: NativeLibrary) -> None:
    weight, x = matrix(256, 1024, dtype=torch.float32), matrix(20, 1024, dtype=torch.float32)
    linear = NativeInt8Linears(library, torch.float32).linear(weight, None)
    expected = x @ weight.T
    assert (linear(x) - expected).norm() < 0.015 * expected.norm()


def test_the_largest_sums_do_not_overflow(library: NativeLibrary) -> None:
    """One value at the start of each rotation becomes 64 equal ones, so every product is 127 × 127."""
    width = MAX_INT8_K
    signs = torch.zeros(1, width)
    signs[0, ::64] = 1.0
    weight = signs * torch.tensor([[3.0], [-3.0]])
    linear = NativeInt8Linears(library, torch.float32).linear(weight, None)
    torch.testing.assert_close(linear(signs * 2.0), torch.tensor([[6.0, -6.0]]) * (width / 64), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="a linear has 65537 inputs; int8 takes at most 65536"):
        NativeInt8Linears(library, torch.float32).linear(torch.zeros(1, width + 1), None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_does_not_depend_on_its_company_or_on_threads(library: NativeLibrary, dtype: torch.dtype) -> None:
    linear = NativeInt8Linears(library, dtype).linear(matrix(300, 2000, dtype=dtype), None)
    x = matrix(70, 2000, dtype=dtype)
    together = linear(x).clone()
    for start, end in [(0, 1), (3, 10), (11, 23), (40, 70)]:
        assert torch.equal(linear(x[start:end]), together[start:end])
    load_library(1, library.level)
    assert torch.equal(linear(x), together)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_stays_in_its_row_and_shows(
    library: NativeLibrary, dtype: torch.dtype, broken: float
) -> None:
    linear = NativeInt8Linears(library, dtype).linear(matrix(40, 130, dtype=dtype), None)
    x = matrix(14, 130, dtype=dtype)
    expected = linear(x).clone()
    x[5, 129] = broken
    y = linear(x)
    assert not y[5].isfinite().any()
    others = torch.arange(14) != 5
    assert torch.equal(y[others], expected[others])


def test_rows_of_nothing_are_zero(library: NativeLibrary) -> None:
    bias = matrix(40, dtype=torch.float32)
    linear = NativeInt8Linears(library, torch.float32).linear(matrix(40, 70, dtype=torch.float32), bias)
    x = torch.zeros(3, 70)
    x[1] = 1e-38
    assert torch.equal(linear(x), bias.expand(3, 40))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_may_lie_apart(library: NativeLibrary, dtype: torch.dtype) -> None:
    linear = NativeInt8Linears(library, dtype).linear(matrix(40, 24, dtype=dtype), None)
    wide = matrix(9, 50, dtype=dtype)
    assert torch.equal(linear(wide[:, 3:27]).clone(), linear(wide[:, 3:27].contiguous()))


def test_weights_may_be_packed_by_several_threads(library: NativeLibrary) -> None:
    linears = NativeInt8Linears(library, torch.float32)
    weights = [matrix(64, 40 + i, dtype=torch.float32) for i in range(24)]
    packed: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {}

    def pack(part: int) -> None:
        for i in range(part, len(weights), 4):
            packed[i] = linears.linear(weights[i], None)

    threads = [threading.Thread(target=pack, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, weight in enumerate(weights):
        x = matrix(3, weight.shape[1], dtype=torch.float32)
        torch.testing.assert_close(packed[i](x), reference_int8(x, weight, None), rtol=1e-6, atol=1e-5)
