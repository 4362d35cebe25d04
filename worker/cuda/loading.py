"""Loads a launch's model onto a device, alone or as one rank of several, and brings the device up."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from pagewire.wire.launch import WorkerLaunch
from pagewire.wire.model import local_decoder
from pagewire.worker.attention.base import AttentionBackend, block_size_of
from pagewire.worker.attention.choice import AttentionNeeds
from pagewire.worker.cuda.bring_up import BroughtUp, CacheTerms, LoadedModel, bring_up
from pagewire.worker.cuda.kernel_ops import KernelOps
from pagewire.worker.cuda.platform import Platform
from pagewire.worker.cuda.timeline import Waker
from pagewire.worker.linears.skinny import FewRowsLinears, device_linears
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.model.layers import LinearKind
from pagewire.worker.model.ops import DecoderOps
from pagewire.worker.native.machine import usable_cores
from pagewire.worker.parallel.ranks import RankStart
from pagewire.worker.slots.columns import SlotLimits
from pagewire.worker.weights.build import TORCH_DTYPES, load_decoder

_MAX_LOAD_THREADS = 8
"""Threads that read and convert weights; copying them to the device is one queue in any case."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedCuda:
    """A device that is ready, and what the engine is told about it."""

    launch: WorkerLaunch
    """With what the group and the attention backend decided."""
    brought_up: BroughtUp
    attention_backend: str
    linear_backend: str
    notes: tuple[str, ...]
    """What was not taken and why, for the log."""


def load_cuda(
    launch: WorkerLaunch,
    platform: Platform,
    progress: Progress,
    on_rank_lost: Callable[[str], None],
    wake: Callable[[], None],
) -> LoadedCuda:
    """`wake` is called from a thread of its own after every step of the runner.

    Raises CudaUnavailable; AttentionUnavailable; RendezvousError; OSError and ValueError, with the sum in its message
    where the device has no room; torch.OutOfMemoryError where not even the weights fit.
    """
    kit = platform.kit(0 if launch.group is None else launch.group.local_rank)
    meter = kit.meter
    before_model_bytes = meter.total() - meter.free()
    dtype = TORCH_DTYPES[launch.dtype]
    candidates = platform.few_rows_kernels(kit.device)
    notes: list[str] = []
    linears = device_linears(
        candidates, kit.device, dtype, new_record=lambda: kit.new_recorder().record, refused=notes.append
    )
    # What the trial showed for the linears' launches is true of the other kernels'.
    overlap = isinstance(linears, FewRowsLinears) and linears.overlaps
    needs = AttentionNeeds(
        config=local_decoder(launch.model.decoder, launch.world_size),
        dtype=dtype,
        device=kit.device,
        max_num_seqs=launch.max_num_seqs,
        max_model_len=launch.max_model_len,
        block_size=launch.block_size,
        overlap=overlap,
    )
    attention = platform.attention(launch.attention_backend, needs)
    block_size = block_size_of(attention, launch.block_size)
    # Ranks must agree on it, also where each took its backend's own.
    launch = msgspec.structs.replace(launch, block_size=block_size)
    limits = SlotLimits(
        max_num_seqs=launch.max_num_seqs,
        max_model_len=launch.max_model_len,
        max_num_batched_tokens=launch.max_num_batched_tokens,
        block_size=block_size,
        num_blocks=1,
        vocab_size=launch.model.decoder.vocab_size,
    )
    ops = KernelOps(
        needs.config,
        needs.dtype,
        kit.device,
        platform.ops_kernels(overlap),
        max_rows=limits.max_num_batched_tokens,
        max_positions=limits.max_model_len,
    )
    allocated_before = meter.allocated()
    launch, decoder = _decoder(launch, attention, ops, linears, progress, on_rank_lost)
    loaded = LoadedModel(
        model=decoder,
        config=needs.config,
        dtype=needs.dtype,
        before_model_bytes=before_model_bytes,
        weights_bytes=meter.allocated() - allocated_before,
    )
    terms = CacheTerms(
        gpu_memory_utilization=launch.gpu_memory_utilization,
        kv_cache_bytes=launch.kv_cache_bytes,
        earlier_num_blocks=launch.earlier_num_blocks,
        enforce_eager=launch.enforce_eager,
    )
    return LoadedCuda(
        launch=launch,
        brought_up=bring_up(kit, loaded, limits, terms, Waker(wake).watch, progress),
        attention_backend=attention.name,
        linear_backend=decoder.linear_backend,
        notes=tuple(notes),
    )


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
