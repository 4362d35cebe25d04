"""What device `auto` is: a CUDA device where this machine has one that a worker can use, else the CPU; and why.

Found without torch, which only a worker imports: the driver answers in a process of its own (`cuda_driver`), and how
torch was built stands in a file of its package.
"""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from pagewire.scheduler_svc.settings import cuda_driver
from pagewire.wire.codec import WireError, decode_json, decode_text
from pagewire.wire.launch import Device

_TIMEOUT_S = 30.0
"""A driver that wakes a sleeping machine's devices takes some seconds."""
_DEVICE_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvgpu", "/dev/nvhost-gpu")
"""One of these is where a driver is: on a PC or server, in WSL, on Tegra."""
_LEAST_CAPABILITY = (8, 0)
"""As the worker's attention asks."""
_CPU_SETTINGS = {"quantization": ("int8",), "attention_backend": ("paged-native", "paged-torch")}
"""Values that ask for a CPU."""
_TORCH_CUDA = re.compile(r"^cuda\b[^=]*=\s*(?:'([\d.]+)'|None)", re.MULTILINE)


class AutoDevice(msgspec.Struct, frozen=True, kw_only=True):
    """What `auto` stands for, and why."""

    device: Device
    reason: str


class CudaAnswer(msgspec.Struct, frozen=True):
    """What `cuda_driver` says."""

    version: int = 0
    devices: list[tuple[str, int, int]] = []
    error: str = ""


def choose_auto(values: Mapping[str, Any], find: Callable[[], "CudaMachine | str"]) -> AutoDevice:
    """For settings by name, as far as they speak of devices. `find` is `find_cuda`."""
    for name, on_cpu in _CPU_SETTINGS.items():
        if values[name] in on_cpu:
            return AutoDevice(device="cpu", reason=f"{name} {values[name]} is for CPUs")
    machine = find()
    if isinstance(machine, str):
        return AutoDevice(device="cpu", reason=machine)
    num_ranks = values["tensor_parallel_size"] - values["remote_workers"]
    if num_ranks > len(machine.devices):
        return AutoDevice(
            device="cpu", reason=f"{num_ranks} ranks here would need as many CUDA devices; {machine.describe()}"
        )
    return AutoDevice(device="cuda", reason=machine.describe())


class CudaMachine(msgspec.Struct, frozen=True, kw_only=True):
    """CUDA devices that a worker can use."""

    devices: list[str]
    """Their names."""
    torch_cuda: str

    def describe(self) -> str:
        """In a line."""
        names = ", ".join(dict.fromkeys(self.devices))
        count = f"{len(self.devices)} × " if len(self.devices) > 1 else ""
        return f"this machine has {count}{names}, and torch for CUDA {self.torch_cuda}"


def find_cuda() -> CudaMachine | str:
    """This machine's, or why a worker could use none. Takes no time where there is no driver."""
    if not any(Path(file).exists() for file in _DEVICE_FILES):
        return "this machine has no NVIDIA device"
    return judge(_ask_driver(), _torch_version_file(), importlib.util.find_spec("triton") is not None)


def judge(answer: CudaAnswer, torch_version_file: str | None, has_triton: bool) -> CudaMachine | str:
    """What follows from the driver's answer, the text of torch's version.py (None: no torch) and Triton's presence."""
    if answer.error:
        return f"no CUDA device can be used: {answer.error}"
    if not answer.devices:
        return "the driver shows no device"
    # A worker takes devices by number, so that all must do.
    for name, major, minor in answer.devices:
        if (major, minor) < _LEAST_CAPABILITY:
            least = ".".join(map(str, _LEAST_CAPABILITY))
            return f"{name} has compute capability {major}.{minor}; the kernels need {least}"
    if torch_version_file is None:
        return f"this machine has {answer.devices[0][0]}, but torch is not installed"
    built = _TORCH_CUDA.search(torch_version_file)
    cuda = built[1] if built else None
    if cuda is None:
        return f"this machine has {answer.devices[0][0]}, but torch is built without CUDA"
    if int(cuda.partition(".")[0]) > answer.version // 1000:
        driver = f"{answer.version // 1000}.{answer.version % 1000 // 10}"
        return f"torch is built for CUDA {cuda}, and the driver knows {driver} at most"
    if not has_triton:
        return f"this machine has {answer.devices[0][0]}, but Triton is not installed: pip install 'pagewire[cuda]'"
    return CudaMachine(devices=[name for name, _, _ in answer.devices], torch_cuda=cuda)


def _ask_driver() -> CudaAnswer:
    command = [sys.executable, "-I", "-S", cuda_driver.__file__]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False)
        return read_answer(done.stdout)
    except subprocess.TimeoutExpired:
        return CudaAnswer(error=f"the driver does not answer within {_TIMEOUT_S:g} s")
    except OSError as error:
        return CudaAnswer(error=f"{sys.executable} does not start: {error.strerror}")
    except WireError:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        return CudaAnswer(error=f"the driver's library ended the process that asked it, with {how}")


def _torch_version_file() -> str | None:
    spec = importlib.util.find_spec("torch")  # of a package, without running any of it
    if spec is None or not spec.origin:
        return None
    try:
        return read_version_file(Path(spec.origin).with_name("version.py").read_bytes())
    except (OSError, WireError):
        return ""


def read_answer(content: bytes) -> CudaAnswer:
    """Raises WireError."""
    return decode_json(content, CudaAnswer)


def read_version_file(content: bytes) -> str:
    """Raises WireError."""
    return decode_text(content)
