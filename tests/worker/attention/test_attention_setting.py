"""What a worker makes of the attention backend and the block size that it is launched with."""

from pathlib import Path

import msgspec
import pytest
from support.worker_process import sim_launch

from pagewire.wire.launch import AttentionBackendName, CpuKernelKind
from pagewire.worker.cpu.kernels import kernels_of_attention
from pagewire.worker.devices import load_device
from pagewire.worker.launch import LaunchError, LoadedDevice, read_launch


def load(**changes: object) -> LoadedDevice:
    launch = sim_launch("ipc:///nowhere", **changes)
    return load_device(launch, lambda stage, fraction: None, lambda reason: None, lambda: None)


def test_sim_has_none() -> None:
    assert load(block_size=None).hello.block_size == 32
    with pytest.raises(LaunchError, match="attention_backend is triton; device sim has no attention"):
        load(attention_backend="triton")


def test_a_cpu_s_block_size() -> None:
    loaded = load(device="cpu", dtype="float32", num_threads=1, attention_backend="paged-torch", block_size=None)
    assert (loaded.hello.attention_backend, loaded.hello.block_size) == ("paged-torch", 32)


@pytest.mark.parametrize(
    ("backend", "kernels", "expected"),
    [
        ("auto", "auto", "auto"),
        ("auto", "torch", "torch"),
        ("paged-native", "auto", "native"),
        ("paged-native", "native", "native"),
        ("paged-torch", "auto", "torch"),
    ],
)
def test_a_cpu_s_attention_comes_with_its_kernels(
    backend: AttentionBackendName, kernels: CpuKernelKind, expected: CpuKernelKind
) -> None:
    assert kernels_of_attention(backend, kernels) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attention_backend": "triton"},
            "attention_backend is triton, which is not for CPUs; device cpu has paged-native and paged-torch",
        ),
        (
            {"attention_backend": "paged-native", "cpu_kernels": "torch"},
            "attention_backend is paged-native, which comes with cpu_kernels native, not torch",
        ),
    ],
)
def test_what_a_cpu_does_not_have(changes: dict[str, object], message: str) -> None:
    with pytest.raises(LaunchError) as error:
        load(device="cpu", num_threads=1, **changes)
    assert str(error.value) == message


def test_exact_continuation_where_attention_is_not_exact(tmp_path: Path) -> None:
    with pytest.raises(LaunchError) as error:
        load(device="cpu", dtype="float32", num_threads=1, cpu_kernels="torch", exact_continuation=True)
    assert str(error.value) == "exact_continuation is set, and attention_backend paged-torch does not recompute so"
    file = tmp_path / "launch.json"
    file.write_bytes(msgspec.json.encode(sim_launch("ipc:///nowhere", world_size=3, exact_continuation=True)))
    with pytest.raises(LaunchError, match="exact_continuation is set and world_size is 3; how more than two ranks'"):
        read_launch(file)
