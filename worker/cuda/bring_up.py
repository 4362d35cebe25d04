"""From a loaded model to a runner: measure the worst step, size the KV cache, record the decode steps.

    worst step, twice ─▶ activations ─▶ two recordings ─▶ graphs, estimated ─▶ KV cache ─▶ warm-up ─▶ recordings
    ─▶ worst step

Recordings hold the cache's address, and the cache takes what they leave, so two are made over a cache of one block, for
their size alone, and thrown away. The order is the same on every rank: a step may wait for the others' parts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.kv_cache import KVCache, num_blocks_within
from pagewire.worker.cuda.graphs import (
    RecordedSteps,
    Recorder,
    fill_with_padding,
    padded_sizes,
    record_size,
    record_steps,
)
from pagewire.worker.cuda.memory import (
    MemoryMeter,
    MemoryReport,
    MemoryUse,
    describe_budget,
    estimated_graph_bytes,
    kv_budget,
)
from pagewire.worker.cuda.runner import CudaRunner
from pagewire.worker.cuda.step_buffers import StepBuffers, StepShape
from pagewire.worker.cuda.step_work import Model, StepKernels, StepMemory, StepWork
from pagewire.worker.cuda.timeline import StepTimes, Timeline
from pagewire.worker.slots.columns import SlotLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceKit:
    """What a device is driven with: CUDA's, or its stand-in on a CPU."""

    device: torch.device
    kernels: StepKernels
    meter: MemoryMeter
    timeline: Timeline
    new_recorder: Callable[[], Recorder]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model on its device, and what loading it took."""

    model: Model
    config: DecoderConfig
    """With this rank's numbers of heads."""
    dtype: torch.dtype
    before_model_bytes: int
    weights_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheTerms:
    """What the KV cache's size is decided by."""

    gpu_memory_utilization: float
    kv_cache_bytes: int | None
    """Instead of what the utilization leaves."""
    earlier_num_blocks: int | None = None
    """As `WorkerLaunch.earlier_num_blocks`."""
    enforce_eager: bool
    """Nothing is recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BroughtUp:
    """A worker's device, ready for plans."""

    runner: CudaRunner
    limits: SlotLimits
    report: MemoryReport


def bring_up(
    kit: DeviceKit,
    loaded: LoadedModel,
    limits: SlotLimits,
    terms: CacheTerms,
    watch: Callable[[StepTimes], None],
    progress: Callable[[str, float], None],
) -> BroughtUp:
    """The runner, with as large a KV cache as the device has room for; num_blocks in `limits` does not matter.

    `watch` is told of every step that is launched. Raises ValueError where there is no room for one sequence of
    max_model_len, with the sum in its message.
    """
    memory = StepMemory.allocate(limits, kit.device)
    progress("profile", 0.0)
    use = _measure(kit, loaded, limits, memory, terms)
    num_blocks = _num_blocks(use, loaded, limits, terms)
    limits = replace(limits, num_blocks=num_blocks)
    kv = KVCache(loaded.config, num_blocks, limits.block_size, loaded.dtype, kit.device)
    work = StepWork(model=loaded.model, kernels=kit.kernels, kv=kv, memory=memory)
    warm_up(work, memory.buffers, limits)
    free_before = kit.meter.free()
    recorded: RecordedSteps | None = None
    if not terms.enforce_eager:
        recorder = kit.new_recorder()
        recorded = record_steps(work, memory.buffers, recorder, limits, lambda done: progress("graphs", done))
    free = kit.meter.free()
    # Torch has given its unused memory back. With the largest activations first, it cuts those of smaller steps out of
    # what it keeps of these: no prompt waits for memory, and together they take what was measured.
    run_worst_step(work, memory.buffers, limits)
    runner = CudaRunner(
        limits=limits, buffers=memory.buffers, work=work, recorded=recorded, timeline=kit.timeline, watch=watch
    )
    report = MemoryReport(
        device=use.device,
        before_model=use.before_model,
        weights=use.weights,
        buffers=use.buffers,
        activations=use.activations,
        graphs=max(0, free_before - free),
        kv_cache=kv.num_bytes,
        free=free,
    )
    return BroughtUp(runner=runner, limits=limits, report=report)


def _measure(
    kit: DeviceKit, loaded: LoadedModel, limits: SlotLimits, memory: StepMemory, terms: CacheTerms
) -> MemoryUse:
    buffers, activations, graphs = _profile(kit, loaded, limits, memory, terms)
    return MemoryUse(
        device=kit.meter.total(),
        before_model=loaded.before_model_bytes,
        weights=loaded.weights_bytes,
        buffers=buffers,
        activations=activations,
        graphs=graphs,
        free=kit.meter.free(),  # here, because what was recorded to be measured is gone by now
    )


def _profile(
    kit: DeviceKit, loaded: LoadedModel, limits: SlotLimits, memory: StepMemory, terms: CacheTerms
) -> tuple[int, int, int]:
    """Bytes of buffers, activations and, estimated, graphs."""
    kv = KVCache(loaded.config, 1, limits.block_size, loaded.dtype, kit.device)
    work = StepWork(model=loaded.model, kernels=kit.kernels, kv=kv, memory=memory)

    def worst_step() -> None:
        run_worst_step(work, memory.buffers, limits)

    worst_step()  # libraries allocate workspaces that stay
    buffers = kit.meter.allocated() - loaded.weights_bytes - kv.num_bytes
    activations = kit.meter.peak(worst_step)
    graphs = 0 if terms.enforce_eager else _estimate_graphs(kit, work, memory.buffers, limits)
    return buffers, activations, graphs


def _estimate_graphs(kit: DeviceKit, work: StepWork, buffers: StepBuffers, limits: SlotLimits) -> int:
    sizes = padded_sizes(limits.max_num_seqs)
    recorder = kit.new_recorder()
    fill_with_padding(buffers, [1] * limits.max_num_seqs)
    launches, frees = [], [kit.meter.free()]
    for size in sizes[-1:-3:-1]:
        launches.append(record_size(work, recorder, size, limits))
        frees.append(kit.meter.free())
    taken = [before - after for before, after in pairwise(frees)]
    return estimated_graph_bytes(taken[0], taken[-1], len(sizes))


def _num_blocks(use: MemoryUse, loaded: LoadedModel, limits: SlotLimits, terms: CacheTerms) -> int:
    budget, name = kv_budget(use, terms.gpu_memory_utilization), describe_budget(use, terms.gpu_memory_utilization)
    if terms.kv_cache_bytes is not None:
        room = use.free - use.activations - use.graphs
        if terms.kv_cache_bytes > room and terms.earlier_num_blocks is None:
            raise ValueError(f"kv_cache_bytes is {terms.kv_cache_bytes}; the device has room for {room}")
        budget, name = min(room, terms.kv_cache_bytes), f"kv_cache_bytes {terms.kv_cache_bytes}"
    return num_blocks_within(
        budget,
        name,
        loaded.config,
        block_size=limits.block_size,
        dtype=loaded.dtype,
        max_num_seqs=limits.max_num_seqs,
        max_model_len=limits.max_model_len,
        earlier_num_blocks=terms.earlier_num_blocks,
    )


def run_worst_step(work: StepWork, buffers: StepBuffers, limits: SlotLimits) -> None:
    """The step that needs most memory: every slot samples, and every row of the token budget is in use. It consists of
    padding, so that no slot and no block changes, but is as large as its longest contexts allow."""
    rows_B = worst_rows(limits)
    run_padding(work, buffers, limits, rows_B, num_decodes=rows_B.count(1))


def warm_up(work: StepWork, buffers: StepBuffers, limits: SlotLimits) -> None:
    """Whatever is compiled is compiled now, for this cache: a prompt must not wait for it. Kernels are specialized on
    the size of the cache, and on counts being one, a multiple of 16, or neither."""
    run_worst_step(work, buffers, limits)
    run_padding(work, buffers, limits, [1], num_decodes=1)  # the worst step may have no decode
    for rows_B in small_mixed_steps(limits):
        run_padding(work, buffers, limits, rows_B)
    buffers.packed[:2].zero_()
    work.apply_changes(0, 1)  # word 0 of the slots, which is 0 until a sequence is admitted


def run_padding(
    work: StepWork, buffers: StepBuffers, limits: SlotLimits, rows_B: list[int], num_decodes: int = 0
) -> None:
    """A step of sequences with so many rows each, all of which sample; it leaves no trace."""
    fill_with_padding(buffers, rows_B)
    first_row, seq_rows = 0, []
    for num_rows in rows_B:
        seq_rows.append((first_row, num_rows, limits.max_model_len))
        first_row += num_rows
    work.run(StepShape(tuple(seq_rows), num_decodes, len(rows_B)))


def small_mixed_steps(limits: SlotLimits) -> list[list[int]]:
    """Rows of chunks, in steps whose counts of sequences and of rows are one, a multiple of 16, or neither."""
    steps = [[1], [3], [16], [17], [1, 2], [1] * 15 + [2], [2] * 16]
    most_seqs, most_rows = limits.max_num_seqs, limits.max_num_batched_tokens
    return [
        rows_B
        for rows_B in steps
        if len(rows_B) <= most_seqs and sum(rows_B) <= most_rows and max(rows_B) <= limits.max_model_len
    ]


def worst_rows(limits: SlotLimits) -> list[int]:
    """Rows of each slot: one where it decodes, those first; the rest of the budget in as few chunks as hold it."""
    rows_B = [1] * limits.max_num_seqs
    spare = min(limits.max_num_batched_tokens, limits.max_num_seqs * limits.max_model_len) - limits.max_num_seqs
    for index in reversed(range(limits.max_num_seqs)):
        more = min(spare, limits.max_model_len - 1)
        rows_B[index] += more
        spare -= more
    return rows_B
