"""Builds what a worker runs from its launch file. torch is imported here and only for devices that use it.

Whatever is wrong with the launch, the machine or the model's files and is nobody's bug here comes out as LaunchError:
one clear line for the person who started the server.
"""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pagewire.wire.codec import JsonCodec, WireError
from pagewire.wire.launch import WorkerLaunch
from pagewire.wire.plan import PROTOCOL_VERSION, WorkerHello
from pagewire.worker.cpu_info import usable_cores
from pagewire.worker.immediate import ImmediateRunner
from pagewire.worker.loop import Runner
from pagewire.worker.sim import SimRunner, sim_num_blocks
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


def read_launch(path: Path) -> WorkerLaunch:
    """Read and check a launch file. Raises LaunchError."""
    codec: JsonCodec[WorkerLaunch] = JsonCodec(WorkerLaunch)
    try:
        launch = codec.decode(path.read_bytes())
    except OSError as error:
        raise LaunchError(f"cannot read the launch file {path}: {error.strerror}") from error
    except WireError as error:
        raise LaunchError(f"the launch file {path} is wrong: {error}") from error
    if (launch.world_size, launch.rank) != (1, 0):
        raise LaunchError(
            f"world_size is {launch.world_size} and rank {launch.rank}: tensor parallelism is not built yet; "
            "this version runs world_size 1, rank 0"
        )
    if launch.max_num_batched_tokens < launch.max_num_seqs:
        raise LaunchError(
            f"max_num_batched_tokens is {launch.max_num_batched_tokens}; it must be at least max_num_seqs, "
            f"{launch.max_num_seqs}, so that every sequence can decode in one step"
        )
    for name, value, least in (
        ("max_num_seqs", launch.max_num_seqs, 1),
        ("max_model_len", launch.max_model_len, 1),
        ("block_size", launch.block_size, 1),
        ("num_threads", 1 if launch.num_threads is None else launch.num_threads, 1),
        ("sim_step_us", launch.sim_step_us, 0),
    ):
        if value < least:
            raise LaunchError(f"{name} is {value}; it must be at least {least}")
    return launch


def load_device(launch: WorkerLaunch, progress: Progress) -> LoadedDevice:
    """Load the model onto the launch's device. Raises LaunchError, and whatever `progress` raises."""
    match launch.device:
        case "sim":
            return _load_sim(launch)
        case "cpu":
            return _load_cpu(launch, progress)
        case "cuda":
            raise LaunchError("device cuda is not built yet: this version runs on cpu and sim")


def _load_sim(launch: WorkerLaunch) -> LoadedDevice:
    try:
        limits = _limits(launch, sim_num_blocks(launch))
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


def _load_cpu(launch: WorkerLaunch, progress: Progress) -> LoadedDevice:
    try:
        import torch
    except ImportError as error:
        raise LaunchError(f"device cpu needs torch ({error}): pip install 'pagewire[worker]'") from error
    from pagewire.worker.cpu_kernels import choose_kernels
    from pagewire.worker.kv_cache import KVCache, available_memory_bytes, plan_num_blocks
    from pagewire.worker.model.weights import load_decoder
    from pagewire.worker.native.library import NativeUnavailable
    from pagewire.worker.runner import CpuRunner

    num_threads = launch.num_threads or usable_cores()
    dtype = torch.bfloat16 if launch.dtype == "bfloat16" else torch.float32
    try:
        kernels = choose_kernels(launch.model.decoder, dtype, num_threads, launch.cpu_kernels)
    except NativeUnavailable as error:
        raise LaunchError(f"cpu_kernels is native: {error}") from error
    attention = kernels.attention
    if launch.block_size % attention.block_size_multiple:
        raise LaunchError(
            f"block_size is {launch.block_size}; attention backend {attention.name} takes multiples of "
            f"{attention.block_size_multiple}"
        )
    try:
        decoder = load_decoder(launch.model, launch.dtype, attention, progress, kernels.ops, kernels.linears, num_threads)
        num_blocks = plan_num_blocks(
            decoder.config,
            block_size=launch.block_size,
            dtype=dtype,
            max_num_seqs=launch.max_num_seqs,
            max_model_len=launch.max_model_len,
            kv_cache_bytes=launch.kv_cache_bytes,
            available_bytes=available_memory_bytes(),
        )
        kv = KVCache(decoder.config, num_blocks, launch.block_size, dtype)
    except (OSError, ValueError) as error:
        raise LaunchError(str(error)) from error
    limits = _limits(launch, num_blocks)
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


def _limits(launch: WorkerLaunch, num_blocks: int) -> SlotLimits:
    return SlotLimits(
        max_num_seqs=launch.max_num_seqs,
        max_model_len=launch.max_model_len,
        max_num_batched_tokens=launch.max_num_batched_tokens,
        block_size=launch.block_size,
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
    )


def installed_version(distribution: str) -> str:
    """Version of an installed distribution, without importing it; empty where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
