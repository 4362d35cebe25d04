"""int8 linears without the native library, and what both kinds share."""

import pytest
import torch
from support.int8_reference import reference_int8

from pagewire.worker.linears import int8 as int8_linear
from pagewire.worker.linears.int8 import Int8Unavailable, NativeInt8Linears, OneDnnInt8Linears, int8_on_torch
from pagewire.worker.model.layers import LinearKind
from pagewire.worker.native.library import LIBRARY_FILE, MAX_INT8_K, load_library


def onednn() -> OneDnnInt8Linears:
    try:
        return int8_on_torch()
    except Int8Unavailable as error:
        pytest.skip(str(error))


def kind_of(name: str, dtype: torch.dtype) -> LinearKind:
    if name == "onednn":
        return onednn()
    if not LIBRARY_FILE.exists():
        pytest.skip("built without the native library")
    return NativeInt8Linears(load_library(torch.get_num_threads()), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", [(75, 48), (33, 200), (600, 128)], ids=str)
def test_torch_s_operators_have_the_same_integers(dtype: torch.dtype, has_bias: bool, shape: tuple[int, int]) -> None:
    # Whole numbers: rotations of them are exact in any order.
    weight = torch.randint(-8, 9, shape).to(dtype)
    bias = torch.randn(shape[0]).to(dtype) if has_bias else None
    linear = onednn().linear(weight, bias)
    for num_rows in (1, 2, 7, 33, 130):
        x = torch.randint(-8, 9, (num_rows, shape[1])).to(dtype)
        y = linear(x)
        assert y.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 2**-8
        torch.testing.assert_close(y.float(), reference_int8(x, weight, bias), rtol=tolerance, atol=1e-4)


def test_torch_s_operators_are_near_the_model_s_own_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(256, 1000, generator=generator), torch.randn(20, 1000, generator=generator)
    weight[:, 3] *= 30
    x[:, 500] *= 30
    expected = x @ weight.T
    assert (onednn().linear(weight, None)(x) - expected).norm() < 0.02 * expected.norm()


def test_a_row_that_is_not_finite_shows() -> None:
    linear = onednn().linear(torch.randn(40, 70), None)
    x = torch.randn(3, 70)
    x[1, 3] = float("nan")
    y = linear(x)
    assert y[[0, 2]].isfinite().all()
    assert not y[1].isfinite().any()


@pytest.mark.parametrize("name", ["onednn", "native"])
def test_a_tied_head_leaves_the_embedding_as_it_is(name: str) -> None:
    weight = torch.randn(512, 64).bfloat16()
    embedding, head = kind_of(name, torch.bfloat16).tied(weight.clone())
    ids = torch.tensor([0, 511, 3])
    assert torch.equal(embedding(ids), weight[ids])
    assert embedding.num_bytes == weight.nbytes
    # A byte a value, and at most two numbers of four bytes a column.
    assert weight.numel() < head.num_bytes <= weight.numel() + 8 * 512
    assert head.name == f"{name}-int8"


@pytest.mark.parametrize("name", ["onednn", "native"])
def test_too_many_inputs_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a linear has 65537 inputs; int8 takes at most 65536"):
        kind_of(name, torch.float32).linear(torch.zeros(1, MAX_INT8_K + 1), None)


def test_a_processor_without_vnni_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's sums of pairs stop at 16 bits there."""

    def saturating(rows: torch.Tensor, *others: object) -> torch.Tensor:
        pairs = (rows.double() * 127).view(len(rows), -1, 2).sum(dim=2).clamp(max=32767)
        return (pairs.sum(dim=1, keepdim=True) - 128 * 127 * rows.shape[1]).float().expand(-1, 32)

    monkeypatch.setattr(int8_linear, "_multiply", saturating)
    with pytest.raises(Int8Unavailable, match="overflow on this processor, which has no VNNI instructions"):
        int8_on_torch()


def test_a_torch_without_the_operators_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_arguments: object) -> torch.Tensor:
        raise AttributeError("'_OpNamespace' 'onednn' object has no attribute 'qlinear_prepack'")

    monkeypatch.setattr(int8_linear, "_multiply", missing)
    with pytest.raises(Int8Unavailable, match=r"torch has no int8 linears here \(.*qlinear_prepack"):
        int8_on_torch()
