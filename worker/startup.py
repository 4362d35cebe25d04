"""Builds what a worker runs from its launch file. torch is imported here and only for devices that use it.

Whatever is wrong with the launch, the machine or the model's files and is nobody's bug here comes out as LaunchError:
one clear line for the person who started the server.
"""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from pagewire.wire.codec import JsonCodec, WireError
from pagewire.wire.launch import UNKNOWN_INCARNATION, WorkerLaunch, terms_digest
from pagewire.wire.plan import PROTOCOL_VERSION, WorkerHello
from pagewire.wire.sharding import local_decoder
from pagewire.worker.cpu_info import usable_cores
from pagewire.worker.immediate import ImmediateRunner
from pagewire.worker.loop import Runner
from pagewire.worker.sim import DEFAULT_BLOCK_SIZE, SimRunner, sim_num_blocks
from pagewire.worker.slot_columns import SlotLimits

Progress = Callable[[str, float], None]
"""Called with a stage's name and how much of it is done, 0 … 1."""


class LaunchError(Exception):
    """A worker that cannot start, for a reason its operator can mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedDevice:
    """A runner that is ready, and what the engine is told about it."""

    runner: Runner
    hello: WorkerHello
    notes: tuple[str, ...] = ()
    """Lines for the log."""


def read_launch(path: Path) -> WorkerLaunch:
    """Read and check a launch file. Raises LaunchError."""
    codec: JsonCodec[WorkerLaunch] = JsonCodec(WorkerLaunch)
    try:
        launch = codec.decode(path.read_bytes())
    except OSError as error:
        raise LaunchError(f"cannot read the launch file {path}: {error.strerror}") from error
    except WireError as error:
        raise LaunchError(f"the launch file {path} is wrong: {error}") from error
    if not 0 <= launch.rank < launch.world_size:
        raise LaunchError(f"rank is {launch.rank}; ranks are numbered from 0, and world_size is {launch.world_size}")
    if launch.world_size > 1 and launch.device != "sim" and launch.group is None:
        raise LaunchError(f"world_size is {launch.world_size}, and no group says where the ranks meet")
    if launch.incarnation == UNKNOWN_INCARNATION and (launch.group is None or launch.rank == 0):
        raise LaunchError(f"incarnation is {launch.incarnation}, which only a rank after 0 of a group may have")
    if launch.quantization != "none" and launch.device != "cpu":
        raise LaunchError(f"quantization is {launch.quantization}; device {launch.device} has none, cpu has int8")
    if launch.max_num_batched_tokens < launch.max_num_seqs:
        raise LaunchError(
            f"max_num_batched_tokens is {launch.max_num_batched_tokens}; it must be at least max_num_seqs, "
            f"{launch.max_num_seqs}, so that every sequence can decode in one step"
        )
    for name, value, least in (
        ("max_num_seqs", launch.max_num_seqs, 1),
        ("max_model_len", launch.max_model_len, 1),
        ("block_size", 1 if launch.block_size is None else launch.block_size, 1),
        ("num_threads", 1 if launch.num_threads is None else launch.num_threads, 1),
        ("sim_step_us", launch.sim_step_us, 0),
    ):
        if value < least:
            raise LaunchError(f"{name} is {value}; it must be at least {least}")
    if not 0 < launch.gpu_memory_utilization <= 1:
        raise LaunchError(
            f"gpu_memory_utilization is {launch.gpu_memory_utilization}; it must be greater than 0 and at most 1"
        )
    return launch


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
            return _load_sim(launch)
        case "cpu":
            return _load_cpu(launch, progress, on_rank_lost)
        case "cuda":
            return _load_cuda(launch, progress, on_rank_lost, wake)


def _load_sim(launch: WorkerLaunch) -> LoadedDevice:
    if launch.attention_backend != "auto":
        raise LaunchError(f"attention_backend is {launch.attention_backend}; device sim has no attention")
    block_size = launch.block_size or DEFAULT_BLOCK_SIZE
    try:
        limits = _limits(launch, block_size, sim_num_blocks(launch, block_size))
        runner = SimRunner(limits, eos_token_ids=launch.model.eos_token_ids, step_us=launch.sim_step_us)
    except ValueError as error:
        raise LaunchError(str(error)) from error
    hello = _hello(
        launch,
        limits,
        weights_bytes=0,
        kv_cache_bytes=0,
        attention_backend="none",
        linear_backend="none",
        libraries=("numpy",),
    )
    return LoadedDevice(runner=ImmediateRunner(runner), hello=hello)


def _load_cpu(launch: WorkerLaunch, progress: Progress, on_rank_lost: Callable[[str], None]) -> LoadedDevice:
    # Before torch is imported: what its sockets meet while ranks come and go is told in our own words.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        import torch
    except ImportError as error:
        raise LaunchError(f"device cpu needs torch ({error}): pip install 'pagewire[worker]'") from error
    from pagewire.worker.attention.base import block_size_of
    from pagewire.worker.cpu_kernels import choose_kernels, kernels_of_attention
    from pagewire.worker.kv_cache import KVCache, available_memory_bytes, plan_num_blocks
    from pagewire.worker.model.int8_linear import Int8Unavailable
    from pagewire.worker.model.weights import load_decoder
    from pagewire.worker.native.library import NativeUnavailable
    from pagewire.worker.parallel.ranks import RankStart
    from pagewire.worker.parallel.rendezvous import RendezvousError
    from pagewire.worker.runner import CpuRunner

    num_local_ranks = 1 if launch.group is None else launch.group.num_local_ranks
    num_threads = launch.num_threads or max(1, usable_cores() // num_local_ranks)
    dtype = torch.bfloat16 if launch.dtype == "bfloat16" else torch.float32
    try:
        local_config = local_decoder(launch.model.decoder, launch.world_size)
        wanted = kernels_of_attention(launch.attention_backend, launch.cpu_kernels)
        kernels = choose_kernels(local_config, dtype, num_threads, wanted, launch.quantization)
        block_size = block_size_of(kernels.attention, launch.block_size)
    except NativeUnavailable as error:
        asked = "cpu_kernels is native" if launch.cpu_kernels == "native" else "attention_backend is paged-native"
        raise LaunchError(f"{asked}: {error}") from error
    except Int8Unavailable as error:
        raise LaunchError(f"quantization is int8: {error}") from error
    except ValueError as error:
        raise LaunchError(str(error)) from error
    attention = kernels.attention
    # Ranks must agree on it, also where each took its backend's own.
    launch = msgspec.structs.replace(launch, block_size=block_size)
    try:
        if launch.group is None:
            decoder = load_decoder(
                launch.model, launch.dtype, attention, progress, kernels.ops, kernels.linears, num_threads
            )
            available_bytes = available_memory_bytes()
        else:
            start = RankStart(launch, launch.group, progress, on_rank_lost)
            launch = msgspec.structs.replace(launch, incarnation=start.incarnation)
            decoder = start.load(
                launch.model, launch.dtype, attention, progress, kernels.ops, kernels.linears, num_threads
            )
            collectives = start.join(kernels.name, torch.device("cpu"), progress)
            decoder = start.parallel(decoder, launch.model.decoder.vocab_size, collectives)
            available_bytes = start.memory_share(available_memory_bytes(), collectives, torch.device("cpu"))
        num_blocks = plan_num_blocks(
            decoder.config,
            block_size=block_size,
            dtype=dtype,
            max_num_seqs=launch.max_num_seqs,
            max_model_len=launch.max_model_len,
            kv_cache_bytes=launch.kv_cache_bytes,
            available_bytes=available_bytes,
        )
        kv = KVCache(decoder.config, num_blocks, block_size, dtype)
        kv.commit_when_idle()
    except (OSError, ValueError, RendezvousError) as error:
        raise LaunchError(str(error)) from error
    limits = _limits(launch, block_size, num_blocks)
    hello = _hello(
        launch,
        limits,
        weights_bytes=decoder.weights_bytes,
        kv_cache_bytes=kv.num_bytes,
        attention_backend=attention.name,
        linear_backend=decoder.linear_backend,
        libraries=("numpy", "torch"),
    )
    runner = CpuRunner(decoder, kv, limits, kernels.sampler(limits.vocab_size))
    return LoadedDevice(runner=ImmediateRunner(runner), hello=hello)


def _load_cuda(
    launch: WorkerLaunch, progress: Progress, on_rank_lost: Callable[[str], None], wake: Callable[[], None]
) -> LoadedDevice:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as above
    try:
        import torch
    except ImportError as error:
        raise LaunchError(f"device cuda needs torch ({error}): pip install 'pagewire[cuda]'") from error
    from pagewire.worker.attention.ladder import AttentionUnavailable
    from pagewire.worker.cuda.loading import load_cuda
    from pagewire.worker.cuda.platform import CudaPlatform, CudaUnavailable
    from pagewire.worker.parallel.rendezvous import RendezvousError

    try:
        loaded = load_cuda(launch, CudaPlatform(), progress, on_rank_lost, wake)
    except (CudaUnavailable, AttentionUnavailable, RendezvousError, OSError, ValueError) as error:
        raise LaunchError(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise LaunchError(f"the device's memory does not hold the model: {error}") from error
    report = loaded.brought_up.report
    hello = _hello(
        loaded.launch,
        loaded.brought_up.limits,
        weights_bytes=report.weights,
        kv_cache_bytes=report.kv_cache,
        attention_backend=loaded.attention_backend,
        linear_backend=loaded.linear_backend,
        libraries=("numpy", "torch", "triton"),
    )
    hello = msgspec.structs.replace(hello, device_memory=report.for_engine())
    return LoadedDevice(runner=loaded.brought_up.runner, hello=hello, notes=tuple(report.lines()))


def _limits(launch: WorkerLaunch, block_size: int, num_blocks: int) -> SlotLimits:
    return SlotLimits(
        max_num_seqs=launch.max_num_seqs,
        max_model_len=launch.max_model_len,
        max_num_batched_tokens=launch.max_num_batched_tokens,
        block_size=block_size,
        num_blocks=num_blocks,
        vocab_size=launch.model.decoder.vocab_size,
    )


def _hello(
    launch: WorkerLaunch,
    limits: SlotLimits,
    *,
    weights_bytes: int,
    kv_cache_bytes: int,
    attention_backend: str,
    linear_backend: str,
    libraries: tuple[str, ...],
) -> WorkerHello:
    return WorkerHello(
        protocol_version=PROTOCOL_VERSION,
        rank=launch.rank,
        incarnation=launch.incarnation,
        num_blocks=limits.num_blocks,
        block_size=limits.block_size,
        max_num_seqs=limits.max_num_seqs,
        max_model_len=limits.max_model_len,
        vocab_size=limits.vocab_size,
        weights_bytes=weights_bytes,
        kv_cache_bytes=kv_cache_bytes,
        attention_backend=attention_backend,
        linear_backend=linear_backend,
        versions={"python": platform.python_version()} | {name: installed_version(name) for name in libraries},
        terms_digest=terms_digest(launch),
    )


def installed_version(distribution: str) -> str:
    """Version of an installed distribution, without importing it; empty where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
