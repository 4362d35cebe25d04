"""Packed linears against plain products, at every instruction set of this machine."""

import threading

import pytest
import torch

from pagewire.worker.linears.native import NativeLinears
from pagewire.worker.native.library import NativeLibrary, load_library

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 1), (32, 2), (31, 33), (65, 7), (200, 301), (512, 96)]
ROWS = [1, 2, 5, 6, 7, 11, 12, 13, 25, 32, 61, 130]


def matrix(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_product_is_right_for_any_number_of_rows(
    library: NativeLibrary, dtype: torch.dtype, shape: tuple[int, int], has_bias: bool
) -> None:
    weight = matrix(*shape, dtype=dtype)
    bias = matrix(shape[0], dtype=dtype) if has_bias else None
    linear = NativeLinears(library, dtype).linear(weight, bias)
    for num_rows in ROWS:
        x = matrix(num_rows, shape[1], dtype=dtype)
        expected = x.double() @ weight.double().T
        if bias is not None:
            expected += bias.double()
        scale = shape[1] ** 0.5
        tolerance = scale * (4e-6 if dtype == torch.float32 else 1e-2)
        torch.testing.assert_close(
            linear(x).double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=tolerance
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_does_not_depend_on_its_company_or_on_threads(library: NativeLibrary, dtype: torch.dtype) -> None:
    linears = NativeLinears(library, dtype)
    linear = linears.linear(matrix(300, 130, dtype=dtype), None)
    x = matrix(70, 130, dtype=dtype)
    together = linear(x).clone()
    for start, end in [(0, 1), (3, 10), (11, 23), (40, 70)]:
        assert torch.equal(linear(x[start:end]), together[start:end])
    load_library(1, library.level)
    assert torch.equal(linear(x), together)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_may_lie_apart(library: NativeLibrary, dtype: torch.dtype) -> None:
    linear = NativeLinears(library, dtype).linear(matrix(40, 24, dtype=dtype), None)
    wide = matrix(9, 50, dtype=dtype)
    assert torch.equal(linear(wide[:, 3:27]).clone(), linear(wide[:, 3:27].contiguous()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_tied_embedding_has_the_rows_that_were_packed(
    library: NativeLibrary, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    weight = matrix(*shape, dtype=dtype)
    embedding, head = NativeLinears(library, dtype).tied(weight)
    ids = torch.arange(shape[0]).flip(0).repeat(2)
    assert torch.equal(embedding(ids), weight[ids])
    assert embedding.num_bytes == 0
    assert head.num_bytes >= weight.nbytes * 0.75


def test_weights_may_be_packed_by_several_threads(library: NativeLibrary) -> None:
    linears = NativeLinears(library, torch.float32)
    weights = [matrix(64, 40 + i, dtype=torch.float32) for i in range(24)]
    packed: dict[int, object] = {}

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
        torch.testing.assert_close(packed[i](x), x @ weight.T, rtol=1e-5, atol=1e-4)


def test_thousands_of_small_regions_are_complete(library: NativeLibrary) -> None:
    """Threads that are late for a region must neither lose nor repeat a part of the next one."""
    load_library(4, library.level)
    linear = NativeLinears(library, torch.float32).linear(torch.eye(256), None)
    x = torch.empty(1, 256)
    for i in range(5000):
        x.fill_(i)
        assert linear(x)[0, i % 256] == i
        assert linear(x).sum() == 256 * i


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_head_gives_float32(library: NativeLibrary, dtype: torch.dtype) -> None:
    weight, x = matrix(75, 96, dtype=dtype), matrix(14, 96, dtype=dtype)
    linears = NativeLinears(library, dtype)
    exact, rounded = linears.head(weight)(x), linears.linear(weight, None)(x)
    assert exact.dtype == torch.float32
    torch.testing.assert_close(exact, x.float() @ weight.float().T, rtol=1e-5, atol=1e-4)
    assert torch.equal(exact.to(dtype), rounded)
    _, tied = linears.tied(weight)
    assert torch.equal(tied(x), exact)
