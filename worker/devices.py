"""Devices: a launch's model, loaded onto the device that the launch names. torch is imported here first, and only for
devices that use it.

Whatever is wrong with the launch, the machine or the model's files and is nobody's bug here comes out as LaunchError:
one clear line for the person who started the server.
"""

import importlib
import os
from collections.abc import Callable

from pagewire.wire.launch import Device, WorkerLaunch
from pagewire.worker.launch import LaunchError, LoadedDevice, Progress
from pagewire.worker.sim import load_sim


def load_device(
    launch: WorkerLaunch, progress: Progress, on_rank_lost: Callable[[str], None], wake: Callable[[], None]
) -> LoadedDevice:
    """Load the model onto the launch's device. Raises LaunchError, and whatever `progress` raises.

    `on_rank_lost` is called with a reason, on a thread of its own and at any time from now on, where another host's
    rank is gone and this process must end. `wake` is called, on a thread too, after every step that a device went on
    with while the runner's caller did something else.
    """
    match launch.device:
        case "sim":
            return load_sim(launch)
        case "cpu":
            import_modules("cpu")
            from pagewire.worker.cpu.loading import load_cpu

            return load_cpu(launch, progress, on_rank_lost)
        case "cuda":
            _import_torch("cuda", extra="cuda")
            from pagewire.worker.cuda.loading import load_cuda

            return load_cuda(launch, progress, on_rank_lost, wake)


def import_modules(device: Device) -> None:
    """Import what a worker of the device needs, as far as that does nothing else. Raises LaunchError."""
    if device == "cpu":
        _import_torch("cpu", extra="worker")
        importlib.import_module("pagewire.worker.cpu.loading")


def _import_torch(device: str, extra: str) -> None:
    # Before the import: what torch's sockets meet while ranks come and go is told in our own words.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        importlib.import_module("torch")
    except ImportError as error:
        raise LaunchError(f"device {device} needs torch ({error}): pip install 'pagewire[{extra}]'") from error
