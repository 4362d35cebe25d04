"""What a worker says about its machine, also where torch is missing."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.worker_process import probe, sim_launch

from pagewire.worker.attention.choice import CudaCard
from pagewire.worker.devices import load_device
from pagewire.worker.launch import LaunchError
from pagewire.worker.native.library import LIBRARY_FILE
from pagewire.worker.native.machine import cpu_flags, instruction_sets, usable_cores
from pagewire.worker.probe import DeviceReport, cuda_report


def test_probe() -> None:
    report = probe()
    assert report["torch"]["num_threads"] == report["usable_cores"] == usable_cores()
    assert report["torch"]["version"]
    assert {device["device"]: device["usable"] for device in report["devices"]}.items() >= {
        "cpu": True,
        "sim": True,
    }.items()
    assert [backend["name"] for backend in report["attention_backends"] if backend["chosen"]] == [
        "paged-native" if LIBRARY_FILE.exists() else "paged-torch"
    ]
    linears = {backend["name"]: backend for backend in report["linear_backends"]}
    assert linears.keys() == {"native-packed", "onednn-packed", "torch", "native-int8", "onednn-int8"}
    chosen = {name for name, backend in linears.items() if backend["chosen"]}
    assert chosen == {"native-packed"} if LIBRARY_FILE.exists() else chosen and chosen <= {"onednn-packed", "torch"}
    assert linears["native-int8"]["available"] == LIBRARY_FILE.exists()
    assert all(backend["note"] for name, backend in linears.items() if name.endswith("int8"))
    assert report["instruction_sets"] == instruction_sets()


def test_probe_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from pagewire.worker.__main__ import main; main(['probe'])"
    report = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert report["torch"] is None
    assert {device["device"]: device["usable"] for device in report["devices"]} == {"cpu": False, "sim": True}
    assert [(missing["what"], missing["install"]) for missing in report["missing"]] == [
        ("torch", "pip install 'pagewire[worker]'")
    ]


@pytest.mark.parametrize(
    ("capability", "has_triton", "usable", "note"),
    [
        ((9, 0), True, True, "triton 3.7.1"),
        ((9, 0), False, False, "triton does not import: No module named 'triton'"),
        ((7, 5), True, False, "NVIDIA X has compute capability 7.5; it takes 8.0 or more"),
    ],
)
def test_cards(capability: tuple[int, int], has_triton: bool, usable: bool, note: str) -> None:
    def import_module(name: str) -> ModuleType:
        if name != "triton" or not has_triton:
            raise ModuleNotFoundError(f"No module named {name!r}")
        module = ModuleType(name)
        module.__version__ = "3.7.1"
        return module

    report = cuda_report(1, CudaCard(name="NVIDIA X", capability=capability, num_sms=9), 80, import_module)
    assert report == DeviceReport(device="cuda:1", name="NVIDIA X", memory_bytes=80, usable=usable, note=note)


def test_a_cpu_worker_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(LaunchError, match=r"device cpu needs torch .*: pip install 'pagewire\[worker\]'"):
        load_device(
            sim_launch("ipc:///nowhere", device="cpu"),
            progress=lambda stage, fraction: None,
            on_rank_lost=lambda reason: None,
            wake=lambda: None,
        )


@pytest.mark.parametrize(
    ("content", "at_most"), [("max 100000\n", 10_000), ("100000 100000\n", 1), ("50000 100000\n", 1), ("torn", 10_000)]
)
def test_a_container_s_quota_bounds_threads(tmp_path: Path, content: str, at_most: int) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert usable_cores(tmp_path / "cpu.max") == min(at_most, usable_cores(tmp_path / "absent"))


def test_flags_of_either_kind_of_processor(tmp_path: Path) -> None:
    (tmp_path / "x86").write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n")
    (tmp_path / "arm").write_text("processor : 0\nFeatures : fp asimd bf16\n")
    assert cpu_flags(tmp_path / "x86") == {"fpu", "avx2", "avx512f"}
    assert cpu_flags(tmp_path / "arm") == {"fp", "asimd", "bf16"}
    assert cpu_flags(tmp_path / "absent") == frozenset()
