"""A device that is ready, and what the engine is told about it."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from pagewire.wire.launch import WorkerLaunch, terms_digest
from pagewire.wire.plan import PROTOCOL_VERSION, WorkerHello
from pagewire.worker.loop import Runner
from pagewire.worker.slots.columns import SlotLimits

Progress = Callable[[str, float], None]
"""Called with a stage's name and how much of it is done, 0 … 1."""


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
        versions={"python": platform.python_version()} | {name: installed_version(name) for name in libraries},
        terms_digest=terms_digest(launch),
    )


def installed_version(distribution: str) -> str:
    """Version of an installed distribution, without importing it; empty where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
