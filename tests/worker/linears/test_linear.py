"""Every kind of linear computes x · weightᵀ + bias."""

import pytest
import torch

from pagewire.worker.linears import torch as torch_linears
from pagewire.worker.linears.torch import Float32Head, OneDnnLinear, TorchLinear, TorchLinears, choose_linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 2, 7, 33, 130])
def test_the_chosen_kind_computes_the_product(dtype: torch.dtype, with_bias: bool, num_rows: int) -> None:
    # An output size that no vector width divides.
    weight = torch.randn(75, 48).to(dtype)
    bias = torch.randn(75).to(dtype) if with_bias else None
    x = torch.randn(num_rows, 48).to(dtype)
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    layer = choose_linear(torch.device("cpu"), dtype)(weight, bias)
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-2, atol=tolerance)
    assert layer(x).dtype == dtype
    assert layer.num_bytes == (75 * 48 + (75 if with_bias else 0)) * dtype.itemsize


def test_fp32_packing_keeps_fp32_accuracy() -> None:
    if choose_linear(torch.device("cpu"), torch.float32) is not OneDnnLinear:
        pytest.skip("oneDNN's packed linear does not work here")
    weight, x = torch.randn(96, 512), torch.randn(5, 512)
    torch.testing.assert_close(OneDnnLinear(weight, None)(x), TorchLinear(weight, None)(x), rtol=1e-5, atol=1e-4)


class _Refusing(OneDnnLinear):
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        raise RuntimeError("this processor is not supported")


class _Wrong(OneDnnLinear):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x) + 1


@pytest.mark.parametrize("broken", [_Refusing, _Wrong])
def test_a_kind_that_fails_its_trial_is_not_chosen(monkeypatch: pytest.MonkeyPatch, broken: type) -> None:
    monkeypatch.setattr(torch_linears, "OneDnnLinear", broken)
    assert choose_linear(torch.device("cpu"), torch.float32) is TorchLinear


def test_other_devices_use_torch() -> None:
    assert choose_linear(torch.device("cuda"), torch.bfloat16) is TorchLinear


def test_a_device_s_head_gives_float32() -> None:
    """The operator is CUDA's alone; on torch's device without memory its types and shapes can be seen."""
    weight = torch.empty(50, 16, dtype=torch.bfloat16, device="meta")
    logits = Float32Head(weight)(torch.empty(3, 16, dtype=torch.bfloat16, device="meta"))
    assert (logits.dtype, logits.shape) == (torch.float32, (3, 50))
    assert isinstance(TorchLinears(TorchLinear).head(torch.zeros(4, 4, dtype=torch.bfloat16)), TorchLinear)
