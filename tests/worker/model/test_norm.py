"""RMS normalization against its definition."""

import pytest
import torch

from pagewire.worker.model.layers import RmsNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e4])
def test_it_follows_the_definition(dtype: torch.dtype, scale: float) -> None:
    """With inputs so small that eps decides, and zero."""
    x = (torch.randn(5, 6, 32) * scale).to(dtype)
    weight, eps = torch.rand(6, 32).to(dtype), 1e-5
    expected = x.double() / (x.double().square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    before = x.clone()
    y = RmsNorm(weight, eps)(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(x, before)
