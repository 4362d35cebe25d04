"""A worker's launch: its file, read and checked whatever the machine and the model, and what comes of it, a device that
is ready and its first message to the engine."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pagewire.wire.codec import WireError, decode_json
from pagewire.wire.launch import UNKNOWN_INCARNATION, WorkerLaunch, terms_digest
from pagewire.wire.plan import PROTOCOL_VERSION, WorkerHello
from pagewire.worker.loop import Runner
from pagewire.worker.slots.columns import SlotLimits

Progress = Callable[[str, float], None]
"""Called with a stage's name and how much of it is done, 0 … 1."""


class LaunchError(Exception):
    """A worker that cannot start, for a reason its operator can mend: one clear line."""


def read_launch(path: Path) -> WorkerLaunch:
    """Read and check a launch file. Raises LaunchError."""
    try:
        launch = decode_json(path.read_bytes(), WorkerLaunch)
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
    if launch.exact_continuation and launch.world_size > 2:
        raise LaunchError(
            f"exact_continuation is set and world_size is {launch.world_size}; how more than two ranks' parts are "
            "added up is their library's choice"
        )
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedDevice:
    """A runner that is ready, and its first message to the engine."""

    runner: Runner
    hello: WorkerHello
    notes: tuple[str, ...] = ()
    """Lines for the log."""


def slot_limits(launch: WorkerLaunch, block_size: int, num_blocks: int) -> SlotLimits:
    """The launch's limits, with what the device decided."""
    return SlotLimits(
        max_num_seqs=launch.max_num_seqs,
        max_model_len=launch.max_model_len,
        max_num_batched_tokens=launch.max_num_batched_tokens,
        block_size=block_size,
        num_blocks=num_blocks,
        vocab_size=launch.model.decoder.vocab_size,
    )


def hello_of(
    launch: WorkerLaunch,
    limits: SlotLimits,
    *,
    weights_bytes: int,
    kv_cache_bytes: int,
    attention_backend: str,
    linear_backend: str,
    recomputes_exactly: bool,
    libraries: tuple[str, ...],
) -> WorkerHello:
    """What a rank says of itself; `libraries` are the distributions whose versions it names."""
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
        recomputes_exactly=recomputes_exactly,
        versions={"python": platform.python_version()} | {name: installed_version(name) for name in libraries},
        terms_digest=terms_digest(launch),
    )


def installed_version(distribution: str) -> str:
    """Version of an installed distribution, without importing it; empty where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
