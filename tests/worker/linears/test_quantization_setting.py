"""What a worker makes of the quantization that it is launched with."""

from pathlib import Path

import msgspec
import pytest
import torch
from support.worker_process import sim_launch

from pagewire.wire.launch import CpuKernelKind
from pagewire.worker.cpu import kernels as cpu_kernels
from pagewire.worker.cpu.kernels import choose_kernels, cpu_linears
from pagewire.worker.devices import load_device
from pagewire.worker.launch import LaunchError, LoadedDevice, read_launch
from pagewire.worker.linears.int8 import Int8Unavailable, OneDnnInt8Linears
from pagewire.worker.native.library import LIBRARY_FILE


def load(**changes: object) -> LoadedDevice:
    launch = sim_launch("ipc:///nowhere", device="cpu", dtype="float32", num_threads=1, **changes)
    return load_device(launch, lambda stage, fraction: None, lambda reason: None, lambda: None)


def refused(*_arguments: object) -> OneDnnInt8Linears:
    raise Int8Unavailable("torch's int8 linears overflow on this processor")


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_int8_is_named_and_agreed_on(kernels: CpuKernelKind) -> None:
    if kernels == "native" and not LIBRARY_FILE.exists():
        pytest.skip("built without the native library")
    try:
        hello = load(cpu_kernels=kernels, quantization="int8").hello
    except LaunchError as error:
        pytest.skip(str(error))
    plain = load(cpu_kernels=kernels).hello
    assert hello.linear_backend == ("native-int8" if kernels == "native" else "onednn-int8")
    assert not plain.linear_backend.endswith("int8")
    assert hello.terms_digest != plain.terms_digest, "ranks of one model must agree on it"


@pytest.mark.parametrize("device", ["sim", "cuda"])
def test_other_devices_have_none(tmp_path: Path, device: str) -> None:
    file = tmp_path / "launch.json"
    file.write_bytes(msgspec.json.encode(sim_launch("ipc:///nowhere", device=device, quantization="int8")))
    with pytest.raises(LaunchError, match=f"quantization is int8; device {device} has none, cpu has int8"):
        read_launch(file)


def test_a_machine_that_cannot_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "int8_on_torch", refused)
    with pytest.raises(LaunchError, match="quantization is int8: torch's int8 linears overflow on this processor"):
        load(cpu_kernels="torch", quantization="int8")
    assert choose_kernels(sim_launch("ipc:///nowhere").model.decoder, torch.float32, 1, "torch").name == "torch"


def test_the_report_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagewire.worker.cpu.kernels.int8_on_torch", refused)
    kinds = {kind.name: kind for kind in cpu_linears(None, "built without a compiler")}
    assert not kinds["native-packed"].available
    assert not kinds["native-int8"].available
    assert kinds["native-int8"].note == "built without a compiler"
    assert not kinds["onednn-int8"].available
    assert kinds["onednn-int8"].note == "torch's int8 linears overflow on this processor"
    assert kinds["torch"].chosen or kinds["onednn-packed"].chosen
