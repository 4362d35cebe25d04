"""Device `cuda`: `pagewire.worker.cuda` does it; here its errors and its report are put into the worker's terms."""

from collections.abc import Callable

import msgspec
import torch

from pagewire.wire.launch import WorkerLaunch
from pagewire.worker.attention.choice import AttentionUnavailable
from pagewire.worker.cuda.loading import load_cuda as load_onto
from pagewire.worker.cuda.platform import CudaPlatform, CudaUnavailable
from pagewire.worker.launch import LaunchError, LoadedDevice, Progress, hello_of
from pagewire.worker.parallel.rendezvous import RendezvousError


def load_cuda(
    launch: WorkerLaunch, progress: Progress, on_rank_lost: Callable[[str], None], wake: Callable[[], None]
) -> LoadedDevice:
    """Raises LaunchError, and whatever `progress` raises."""
    try:
        loaded = load_onto(launch, CudaPlatform(), progress, on_rank_lost, wake)
    except (CudaUnavailable, AttentionUnavailable, RendezvousError, OSError, ValueError) as error:
        raise LaunchError(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise LaunchError(f"the device's memory does not hold the model: {error}") from error
    report = loaded.brought_up.report
    hello = hello_of(
        loaded.launch,
        loaded.brought_up.limits,
        weights_bytes=report.weights,
        kv_cache_bytes=report.kv_cache,
        attention_backend=loaded.attention_backend,
        linear_backend=loaded.linear_backend,
        libraries=("numpy", "torch", "triton"),
    )
    hello = msgspec.structs.replace(hello, device_memory=report.for_engine())
    return LoadedDevice(runner=loaded.brought_up.runner, hello=hello, notes=(*loaded.notes, *report.lines()))
