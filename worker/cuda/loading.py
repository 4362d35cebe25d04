"""Loading of device `cuda`: a launch's model put onto the device, alone or as one rank of several, and brought up.

Errors and the device's report are put into the worker's terms here.
"""

from collections.abc import Callable

import msgspec
import torch

from pagewire.wire.launch import WorkerLaunch
from pagewire.wire.model import local_decoder
from pagewire.worker.attention.base import AttentionBackend, block_size_of
from pagewire.worker.attention.choice import AttentionNeeds, AttentionUnavailable
from pagewire.worker.cuda.bring_up import CudaStart, bring_up
from pagewire.worker.cuda.kernel_ops import KernelOps
from pagewire.worker.cuda.platform import CudaPlatform, CudaUnavailable, Platform
from pagewire.worker.cuda.timeline import Waker
from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.launch import LaunchError, LoadedDevice, Progress, hello_of
from pagewire.worker.linears.exact import choose_exact
from pagewire.worker.linears.skinny import Capture, choose_kernels
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.model.layers import LinearKind
from pagewire.worker.model.ops import DecoderOps
from pagewire.worker.native.machine import usable_cores
from pagewire.worker.parallel.ranks import RankStart
from pagewire.worker.parallel.rendezvous import RendezvousError
from pagewire.worker.weights.build import TORCH_DTYPES, load_decoder

_MAX_LOAD_THREADS = 8
"""Threads that read and convert weights; copying them to the device is one queue in any case."""


def load_cuda(
    launch: WorkerLaunch, progress: Progress, on_rank_lost: Callable[[str], None], wake: Callable[[], None]
) -> LoadedDevice:
    """Raises LaunchError, and whatever `progress` raises."""
    try:
        platform = CudaPlatform(0 if launch.group is None else launch.group.local_rank)
        loaded = load_onto(launch, platform, progress, on_rank_lost, wake)
    except (CudaUnavailable, AttentionUnavailable, RendezvousError, OSError, ValueError) as error:
        raise LaunchError(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise LaunchError(f"the device's memory does not hold the model: {error}") from error
    # What a step leaves for the host to copy is small: threads that share it wait for each other longer than they copy.
    torch.set_num_threads(1)
    return loaded


def load_onto(
    launch: WorkerLaunch,
    platform: Platform,
    progress: Progress,
    on_rank_lost: Callable[[str], None],
    wake: Callable[[], None],
) -> LoadedDevice:
    """`wake` is called from a thread of its own after every step of the runner.

    Raises CudaUnavailable; AttentionUnavailable; RendezvousError; OSError and ValueError, with the sum in its message
    where the device has no room; torch.OutOfMemoryError where not even the weights fit.
    """
    meter = platform.meter
    before_model_bytes = meter.total() - meter.free()
    dtype = TORCH_DTYPES[launch.dtype]
    notes: list[str] = []
    kernels, linears = _kernels(launch, platform, dtype, notes.append)
    config = local_decoder(launch.model.decoder, launch.world_size)
    needs = AttentionNeeds(
        config=config,
        dtype=dtype,
        device=platform.device,
        max_num_seqs=launch.max_num_seqs,
        max_model_len=launch.max_model_len,
        block_size=launch.block_size,
        kernels=kernels,
    )
    attention = platform.attention("triton" if kernels.is_exact else launch.attention_backend, needs)
    block_size = block_size_of(attention, launch.block_size)
    # Ranks must agree on it, also where each took its backend's own.
    launch = msgspec.structs.replace(launch, block_size=block_size)
    ops = KernelOps(
        config,
        dtype,
        platform.device,
        kernels,
        max_rows=launch.max_num_batched_tokens,
        max_positions=launch.max_model_len,
    )
    allocated_before = meter.allocated()
    launch, decoder = _decoder(launch, attention, ops, linears, progress, on_rank_lost)
    start = CudaStart(
        launch=launch,
        platform=platform,
        kernels=kernels,
        model=decoder,
        config=config,
        block_size=block_size,
        before_model_bytes=before_model_bytes,
        weights_bytes=meter.allocated() - allocated_before,
    )
    runner, limits, report = bring_up(start, Waker(wake).watch, progress)
    hello = hello_of(
        launch,
        limits,
        weights_bytes=report.weights,
        kv_cache_bytes=report.kv_cache,
        attention_backend=attention.name,
        linear_backend=decoder.linear_backend,
        recomputes_exactly=attention.recomputes_exactly,
        libraries=("numpy", "torch", "triton"),
    )
    hello = msgspec.structs.replace(hello, device_memory=report.for_engine())
    return LoadedDevice(runner=runner, hello=hello, notes=(*notes, *report.lines()))


def _kernels(
    launch: WorkerLaunch, platform: Platform, dtype: torch.dtype, refused: Callable[[str], None]
) -> tuple[Kernels, LinearKind]:
    """Raises ValueError where exact ones are asked for and are not to be had."""

    def new_capture() -> Capture:
        return platform.new_capture().capture

    if not launch.exact_continuation:
        return choose_kernels(platform.kernels(), platform.device, dtype, new_capture, refused)
    if launch.attention_backend not in ("auto", "triton"):
        raise ValueError(f"exact_continuation is set and attention_backend is {launch.attention_backend}; it is triton")
    return choose_exact(platform.kernels(exact=True), platform.device, dtype, new_capture, refused)


def _decoder(
    launch: WorkerLaunch,
    attention: AttentionBackend,
    ops: DecoderOps,
    linears: LinearKind,
    progress: Progress,
    on_rank_lost: Callable[[str], None],
) -> tuple[WorkerLaunch, Decoder]:
    """The decoder, its weights on the device; and the launch with its group's incarnation."""
    num_threads = launch.num_threads or min(_MAX_LOAD_THREADS, usable_cores())
    spec = launch.model
    if launch.group is None:
        return launch, load_decoder(spec, launch.dtype, attention, progress, ops, linears, num_threads)
    start = RankStart(launch, launch.group, progress, on_rank_lost)
    launch = msgspec.structs.replace(launch, incarnation=start.incarnation)
    local = start.load(spec, launch.dtype, attention, progress, ops, linears, num_threads)
    collectives = start.join(f"cuda, {attention.name}", linears.device, progress)
    return launch, start.parallel(local, spec.decoder.vocab_size, collectives)
