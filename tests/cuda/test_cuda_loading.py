"""What a launch on device cuda says where there is no such device, and where weights end up."""

import pytest
import torch
from support.device_runner import tiny_config, tiny_spec
from support.worker_process import sim_launch

from pagewire.worker.attention.paged_torch import PagedTorchAttention
from pagewire.worker.model.linear import TorchLinear, TorchLinears
from pagewire.worker.model.weights import load_decoder
from pagewire.worker.startup import LaunchError, load_device


@pytest.mark.parametrize(("built_with", "reason"), [(None, "is built without CUDA"), ("12.9", "finds no CUDA device")])
def test_a_machine_without_a_device(monkeypatch: pytest.MonkeyPatch, built_with: str | None, reason: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_with)
    with pytest.raises(LaunchError, match=rf"^device cuda: torch \S+ {reason}$"):
        load_device(
            sim_launch("ipc:///nowhere", device="cuda"),
            progress=lambda stage, fraction: None,
            on_rank_lost=lambda reason: None,
            wake=lambda: None,
        )


@pytest.mark.parametrize("tied", [False, True])
def test_every_weight_goes_to_the_linears_device(tied: bool) -> None:
    """The `meta` device stands for one that is not the CPU."""
    meta = torch.device("meta")
    linears = TorchLinears(TorchLinear, meta)
    spec = tiny_spec(tiny_config(vocab_size=50, tied=tied))
    decoder = load_decoder(spec, "float32", PagedTorchAttention(), lambda stage, done: None, linears=linears)
    found = []
    pending: list[object] = [decoder.weights]
    while pending:
        part = pending.pop()
        if isinstance(part, torch.Tensor):
            found.append(part)
        elif isinstance(part, list):
            pending += part
        elif hasattr(part, "__dict__"):
            pending += vars(part).values()
        elif hasattr(part, "__slots__"):
            pending += [getattr(part, name) for name in part.__slots__]
    assert {tensor.device for tensor in found} == {meta}
    # Per layer four linears and three norms of two tensors each; the last norm; embedding and head.
    assert len(found) == 2 * (4 + 3 * 2) + 2 + 2
    matrices = {id(tensor) for tensor in found if tensor.shape[:1] == (50,)}
    assert len(matrices) == (1 if tied else 2)
