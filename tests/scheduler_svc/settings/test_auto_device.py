"""What device `auto` is, from a driver's answer, torch's file and the settings; no machine is asked but by the program
that asks the driver."""

import ctypes
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from pagewire.scheduler_svc.settings import auto_device, cuda_driver
from pagewire.scheduler_svc.settings.auto_device import (
    AutoDevice,
    CudaAnswer,
    CudaMachine,
    choose_auto,
    find_cuda,
    judge,
)
from pagewire.scheduler_svc.settings.settings import Settings
from pagewire.scheduler_svc.settings.sources import render, resolve

VALUES = {"quantization": "none", "attention_backend": "auto", "tensor_parallel_size": 1, "remote_workers": 0}
H200 = ("NVIDIA H200", 9, 0)
TORCH = "__version__ = '2.11.0+cu130'\ndebug = False\ncuda: Optional[str] = '13.0'\ngit_version = 'x'\nhip = None\n"
MACHINE = CudaMachine(devices=["NVIDIA H200"], torch_cuda="13.0")


def choose(find: CudaMachine | str = MACHINE, **values: object) -> AutoDevice:
    return choose_auto({**VALUES, **values}, lambda: find)


@pytest.mark.parametrize(
    ("answer", "torch", "has_triton", "reason"),
    [
        (
            CudaAnswer(error="the driver shows no device"),
            TORCH,
            True,
            "no CUDA device can be used: the driver",
        ),
        (CudaAnswer(version=13000), TORCH, True, "the driver shows no device"),
        (
            CudaAnswer(13000, [H200, ("Tesla T4", 7, 5)]),
            TORCH,
            True,
            "Tesla T4 has compute capability 7.5; the",
        ),
        (CudaAnswer(13000, [H200]), None, True, "this machine has NVIDIA H200, but torch is not installed"),
        (CudaAnswer(13000, [H200]), "cuda: Optional[str] = None\n", True, "but torch is built without CUDA"),
        (CudaAnswer(13000, [H200]), "", True, "but torch is built without CUDA"),
        (CudaAnswer(12040, [H200]), TORCH, True, "torch is built for CUDA 13.0, and the driver knows 12.4 at most"),
        (CudaAnswer(13000, [H200]), TORCH, False, "but Triton is not installed: pip install 'pagewire[cuda]'"),
    ],
)
def test_what_a_worker_could_not_use(answer: CudaAnswer, torch: str | None, has_triton: bool, reason: str) -> None:
    found = judge(answer, torch, has_triton)
    assert isinstance(found, str)
    assert reason in found
    assert choose(found) == AutoDevice(device="cpu", reason=found)


def test_a_machine_with_devices() -> None:
    assert judge(CudaAnswer(13000, [H200]), TORCH, True) == MACHINE
    assert judge(CudaAnswer(13010, [H200]), TORCH.replace("13.0", "12.8"), True) == CudaMachine(
        devices=["NVIDIA H200"], torch_cuda="12.8"
    )
    assert choose().device == "cuda"
    assert choose().reason == "this machine has NVIDIA H200, and torch for CUDA 13.0"
    two = CudaMachine(devices=["NVIDIA H200"] * 2, torch_cuda="13.0")
    assert choose(two).reason == "this machine has 2 × NVIDIA H200, and torch for CUDA 13.0"


def test_settings_that_ask_for_a_cpu() -> None:
    assert choose(quantization="int8") == AutoDevice(device="cpu", reason="quantization int8 is for CPUs")
    assert choose(attention_backend="paged-torch").device == "cpu"
    assert choose(attention_backend="triton").device == "cuda"


def test_each_rank_of_this_machine_has_a_device_of_its_own() -> None:
    assert choose(tensor_parallel_size=2, remote_workers=1).device == "cuda"
    chosen = choose(tensor_parallel_size=2)
    assert chosen.device == "cpu"
    assert chosen.reason.startswith("2 ranks here would need as many CUDA devices; this machine has NVIDIA H200")


def test_settings_have_what_auto_came_to_and_its_defaults() -> None:
    asked: list[Mapping[str, Any]] = []

    def auto(values: Mapping[str, Any]) -> AutoDevice:
        asked.append(values)
        return choose_auto(values, lambda: MACHINE)

    resolved = resolve({}, {}, None, auto)
    assert (resolved.settings.device, resolved.settings.max_num_seqs) == ("cuda", 256)
    assert resolved.origins["max_num_seqs"] == "default of device cuda"
    line = 'device = "cuda"  # auto: this machine has NVIDIA H200, and torch for CUDA 13.0\n'
    assert line in render(resolved)
    assert resolve({"quantization": "int8"}, {}, None, auto).settings.device == "cpu"
    assert len(asked) == 2
    assert resolve({"device": "cpu"}, {}, None, auto).settings.device == "cpu"
    assert resolve({}, {}, None).settings == Settings()
    assert len(asked) == 2, "a device that is named needs no asking"


def test_a_machine_without_a_driver_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_device, "_DEVICE_FILES", ("/nonexistent/nvidiactl",))
    monkeypatch.setattr(auto_device, "_ask_driver", lambda: pytest.fail("asked"))
    assert find_cuda() == "this machine has no NVIDIA device"


def test_the_program_answers_also_where_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = subprocess.run([sys.executable, "-I", "-S", cuda_driver.__file__], capture_output=True, check=True)
    assert json.loads(done.stdout).keys() == {"error"}
    monkeypatch.setattr(auto_device, "_DEVICE_FILES", ("/",))
    found = find_cuda()
    assert isinstance(found, str)
    assert found.startswith("no CUDA device can be used: ")


class FakeDriver:
    """Two devices, or an error of one function."""

    def __init__(self, broken: str = "", status: int = 0) -> None:
        self._broken, self._status = broken, status

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name == self._broken:
                return self._status
            match name, arguments:
                case "cuDriverGetVersion", (version,):
                    version._obj.value = 13000
                case "cuDeviceGetCount", (count,):
                    count._obj.value = 2
                case "cuDeviceGet", (device, index):
                    device._obj.value = index
                case "cuDeviceGetName", (name_buffer, size, device):
                    name_buffer.value = f"card {device.value}".encode()[: size - 1]
                case "cuDeviceGetAttribute", (value, attribute, ctypes.c_int()):
                    value._obj.value = {75: 9, 76: 0}[attribute]
            return 0

        return call


def test_what_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "_library", FakeDriver)
    assert cuda_driver.ask() == {"version": 13000, "devices": [("card 0", 9, 0), ("card 1", 9, 0)]}


@pytest.mark.parametrize(
    ("broken", "status", "reason"),
    [
        ("cuInit", 100, "the driver shows no device"),
        ("cuInit", 999, "the driver's cuInit fails with error 999"),
        ("cuDeviceGetName", 3, "the driver's cuDeviceGetName fails with error 3"),
    ],
)
def test_a_driver_that_fails(
    broken: str, status: int, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_driver, "_library", lambda: FakeDriver(broken, status))
    assert cuda_driver.main() == 0
    assert json.loads(capsys.readouterr().out) == {"error": reason}


@pytest.mark.parametrize("said", [b"", b"{", b'{"devices": 3}', b"\xff"])
def test_an_answer_that_is_none(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], -11, said, b"")
    monkeypatch.setattr(auto_device.subprocess, "run", lambda *args, **kwargs: done)
    assert auto_device._ask_driver() == CudaAnswer(
        error="the driver's library ended the process that asked it, with signal 11"
    )


def test_a_driver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: object, **kwargs: object) -> None:
        raise subprocess.TimeoutExpired("python", 30.0)

    monkeypatch.setattr(auto_device.subprocess, "run", run)
    assert auto_device._ask_driver() == CudaAnswer(error="the driver does not answer within 30 s")
