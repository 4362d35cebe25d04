"""A linear whose few rows run in kernels of its own: the same product for any number of rows, and kernels that are
chosen only where they work."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.host_device import EagerCapture

from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.kernels.sets import reference_kernels
from pagewire.worker.linears.skinny import Capture, SkinnyLinear, SkinnyLinears, choose_kernels
from pagewire.worker.linears.torch import TorchLinear
from pagewire.worker.model.layers import Linear

CPU = torch.device("cpu")
KERNELS = reference_kernels()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_rows", [1, 4, 5])
def test_the_product(num_rows: int, dtype: torch.dtype) -> None:
    weight, bias, x = torch.randn(30, 48).to(dtype), torch.randn(30).to(dtype), torch.randn(num_rows, 48).to(dtype)
    linear = SkinnyLinears(KERNELS, CPU).linear(weight, bias)
    assert linear.num_bytes == weight.nbytes + bias.nbytes
    assert linear(x).dtype == dtype
    expected = F.linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(linear(x).double(), expected, rtol=1e-2, atol=1e-4 if dtype == torch.float32 else 0.2)


def test_two_rows_of_a_wide_weight_are_many() -> None:
    refusing = replace(KERNELS, linear=_refuse)
    weight, x = torch.randn(3, 4100), torch.randn(2, 4100)
    linear = SkinnyLinears(refusing, CPU).linear(weight, None)
    assert torch.equal(linear(x), F.linear(x, weight))
    with pytest.raises(RuntimeError, match="no kernel image"):
        linear(x[:1])


@pytest.mark.parametrize("tied", [False, True])
def test_few_rows_of_a_head_are_float32(tied: bool) -> None:
    weight, x = torch.randn(30, 48).bfloat16(), torch.randn(2, 48).bfloat16()
    linears = SkinnyLinears(KERNELS, CPU)
    embedding, head = linears.tied(weight) if tied else (None, linears.head(weight))
    torch.testing.assert_close(head(x), x.float() @ weight.float().T)
    if embedding is not None:
        assert torch.equal(embedding(torch.tensor([7])), weight[7:8])


def _refuse(*tensors: object) -> None:
    raise RuntimeError("no kernel image is available")


def _write_nothing(*tensors: object) -> None:
    tensors[-1].zero_()


def _chosen(
    candidates: list[Kernels], dtype: torch.dtype, new_capture: Callable[[], Capture]
) -> tuple[Linear, list[str]]:
    refused: list[str] = []
    kernels, kind = choose_kernels(candidates, CPU, dtype, new_capture, refused.append)
    assert kernels is candidates[-1]
    return kind.linear(torch.zeros(2, 2), None), refused


@pytest.mark.parametrize(
    ("broken", "reason"), [(_refuse, "RuntimeError: no kernel image is available"), (_write_nothing, "differ from")]
)
@pytest.mark.parametrize("which", ["linear", "add_norm_linear", "add_norm_gate_up"])
def test_kernels_that_fail_their_trial_are_not_chosen(which: str, broken: object, reason: str) -> None:
    captures: list[EagerCapture] = []

    def new_capture() -> Capture:
        captures.append(EagerCapture())
        return captures[-1].capture

    bad: Kernels = replace(KERNELS, name="bad", **{which: broken})
    linear, refused = _chosen([bad], torch.float32, new_capture)
    assert isinstance(linear, TorchLinear)
    assert len(refused) == 1
    assert refused[0].startswith("skinny linears, bad: ")
    assert reason in refused[0]
    second, refused = _chosen([bad, KERNELS], torch.bfloat16, new_capture)
    assert isinstance(second, SkinnyLinear)
    assert second.name == f"skinny-{KERNELS.name}"
    assert len(refused) == 1
    assert len({id(capture) for capture in captures}) == 3, "one that failed may be in any state"


def test_kernels_whose_numbers_are_none_are_not_chosen() -> None:
    bad = replace(KERNELS, linear=lambda *tensors: tensors[-1].fill_(float("nan")))
    linear, (reason,) = _chosen([bad], torch.float32, lambda: EagerCapture().capture)
    assert isinstance(linear, TorchLinear)
    assert "differ from their definition by nan" in reason


def test_kernels_that_cannot_be_captured_are_not_chosen() -> None:
    def capture(work: object) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    linear, (reason,) = _chosen([KERNELS], torch.float32, lambda: capture)
    assert isinstance(linear, TorchLinear)
    assert reason.endswith(": RuntimeError: operation not permitted when stream is capturing and more")
