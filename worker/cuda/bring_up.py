"""The bring-up: from a loaded model to a runner. Measure the worst step, size the KV cache, capture the decode steps.

    worst step, twice ─▶ activations ─▶ two captures ─▶ graphs, estimated ─▶ KV cache ─▶ warm-up ─▶ captures
    ─▶ worst step

Graphs hold the cache's address, and the cache takes what they leave, so two are captured over a cache of one block, for
their size alone, and thrown away. The order is the same on every rank: a step may wait for the others' parts.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch

from pagewire.wire.launch import WorkerLaunch
from pagewire.wire.logits import MAX_SCORED_ROWS
from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.kv_cache import KVCache, num_blocks_within
from pagewire.worker.cuda.graphs import StepGraphs, capture_size, capture_steps, fill_with_padding, padded_sizes
from pagewire.worker.cuda.memory import MemoryReport, MemoryUse, describe_budget, estimated_graph_bytes, kv_budget
from pagewire.worker.cuda.platform import Platform
from pagewire.worker.cuda.runner import CudaRunner
from pagewire.worker.cuda.special_work import SpecialWork
from pagewire.worker.cuda.step_buffers import StepBuffers, StepShape
from pagewire.worker.cuda.step_work import LogitRows, Model, StepLogits, StepMemory, StepWork
from pagewire.worker.cuda.timeline import StepTimes
from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.launch import slot_limits
from pagewire.worker.slots.columns import SlotLimits
from pagewire.worker.weights.build import TORCH_DTYPES

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaStart:
    """A start, as far as it has come once the model is loaded: what `bring_up` makes a runner of."""

    launch: WorkerLaunch
    """With what the group and the attention backend decided."""
    platform: Platform
    kernels: Kernels
    model: Model
    config: DecoderConfig
    """With this rank's numbers of heads."""
    block_size: int
    before_model_bytes: int
    """In use on the device when the worker began."""
    weights_bytes: int

    @property
    def dtype(self) -> torch.dtype:
        return TORCH_DTYPES[self.launch.dtype]

    def new_cache(self, num_blocks: int) -> KVCache:
        """A KV cache of so many blocks on the device."""
        return KVCache(self.config, num_blocks, self.block_size, self.dtype, self.platform.device)

    def work(self, kv: KVCache, memory: StepMemory) -> StepWork:
        """Steps over this cache, in this memory."""
        return StepWork(model=self.model, kernels=self.kernels, kv=kv, memory=memory)

    def special(self, memory: StepMemory) -> SpecialWork:
        """What follows steps that have special rows, in the same memory."""
        return SpecialWork(self.kernels, memory, _log_error)


def bring_up(
    start: CudaStart, watch: Callable[[StepTimes], None], progress: Callable[[str, float], None]
) -> tuple[CudaRunner, SlotLimits, MemoryReport]:
    """The runner, with as large a KV cache as the device has room for; what plans must stay within; and where the
    device's memory went.

    `watch` is told of every step that is launched. Raises ValueError where there is no room for one sequence of
    max_model_len, with the sum in its message.
    """
    platform = start.platform
    limits = slot_limits(start.launch, start.block_size, num_blocks=1)
    memory = StepMemory.allocate(limits, platform.device)
    progress("profile", 0.0)
    use = _measure(start, limits, memory)
    limits = replace(limits, num_blocks=_num_blocks(start, use))
    kv = start.new_cache(limits.num_blocks)
    work = start.work(kv, memory)
    special = start.special(memory)
    warm_up(work, special, memory.buffers, limits)
    free_before = platform.meter.free()
    graphs: StepGraphs | None = None
    if not start.launch.enforce_eager:
        capture = platform.new_capture()
        graphs = capture_steps(work, memory.buffers, capture, limits, lambda done: progress("graphs", done))
    free = platform.meter.free()
    # Torch has given its unused memory back. With the largest activations first, it cuts those of smaller steps out of
    # what it keeps of these: no prompt waits for memory, and together they take what was measured.
    run_worst_step(work, special, memory.buffers, limits)
    runner = CudaRunner(
        limits=limits,
        buffers=memory.buffers,
        work=work,
        special=special,
        spec=start.launch.model,
        graphs=graphs,
        timeline=platform.timeline,
        watch=watch,
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
    return runner, limits, report


def _measure(start: CudaStart, limits: SlotLimits, memory: StepMemory) -> MemoryUse:
    meter = start.platform.meter
    buffers, activations, graphs = _profile(start, limits, memory)
    return MemoryUse(
        device=meter.total(),
        before_model=start.before_model_bytes,
        weights=start.weights_bytes,
        buffers=buffers,
        activations=activations,
        graphs=graphs,
        free=meter.free(),  # here, because what was captured to be measured is gone by now
    )


def _profile(start: CudaStart, limits: SlotLimits, memory: StepMemory) -> tuple[int, int, int]:
    """Bytes of buffers, activations and, estimated, graphs."""
    meter = start.platform.meter
    kv = start.new_cache(1)
    work, special = start.work(kv, memory), start.special(memory)

    def worst_step() -> None:
        run_worst_step(work, special, memory.buffers, limits)

    worst_step()  # libraries allocate workspaces that stay
    buffers = meter.allocated() - start.weights_bytes - kv.num_bytes
    activations = meter.peak(worst_step)
    graphs = 0 if start.launch.enforce_eager else _estimate_graphs(start.platform, work, memory.buffers, limits)
    return buffers, activations, graphs


def _estimate_graphs(platform: Platform, work: StepWork, buffers: StepBuffers, limits: SlotLimits) -> int:
    sizes = padded_sizes(limits.max_num_seqs)
    capture = platform.new_capture()
    fill_with_padding(buffers, [1] * limits.max_num_seqs)
    launches, frees = [], [platform.meter.free()]
    for size in sizes[-1:-3:-1]:
        launches.append(capture_size(work, capture, size, limits))
        frees.append(platform.meter.free())
    taken = [before - after for before, after in pairwise(frees)]
    return estimated_graph_bytes(taken[0], taken[-1], len(sizes))


def _num_blocks(start: CudaStart, use: MemoryUse) -> int:
    launch = start.launch
    utilization = launch.gpu_memory_utilization
    budget, name = kv_budget(use, utilization), describe_budget(use, utilization)
    if launch.kv_cache_bytes is not None:
        room = use.free - use.activations - use.graphs
        if launch.kv_cache_bytes > room and launch.earlier_num_blocks is None:
            raise ValueError(f"kv_cache_bytes is {launch.kv_cache_bytes}; the device has room for {room}")
        budget, name = min(room, launch.kv_cache_bytes), f"kv_cache_bytes {launch.kv_cache_bytes}"
    return num_blocks_within(
        budget,
        name,
        start.config,
        block_size=start.block_size,
        dtype=start.dtype,
        max_num_seqs=launch.max_num_seqs,
        max_model_len=launch.max_model_len,
        earlier_num_blocks=launch.earlier_num_blocks,
    )


def run_worst_step(work: StepWork, special: SpecialWork, buffers: StepBuffers, limits: SlotLimits) -> None:
    """The step that needs most memory: every slot samples, every row of the token budget is in use, and as many as may
    score do. It consists of padding, so that no slot and no block changes, but is as large as its longest contexts
    allow."""
    rows_B = worst_rows(limits)
    rows = worst_logit_rows(rows_B, buffers.packed.device)
    logits = run_padding(work, buffers, limits, rows_B, num_decodes=rows_B.count(1), rows=rows)
    special.run_padding(logits, len(rows_B))


def warm_up(work: StepWork, special: SpecialWork, buffers: StepBuffers, limits: SlotLimits) -> None:
    """Whatever is compiled is compiled now, for this cache: a prompt must not wait for it. Kernels are specialized on
    the size of the cache, and on counts being one, a multiple of 16, or neither."""
    run_worst_step(work, special, buffers, limits)
    run_padding(work, buffers, limits, [1], num_decodes=1)  # the worst step may have no decode
    for rows_B in small_mixed_steps(limits):
        run_padding(work, buffers, limits, rows_B)
    buffers.packed[:2].zero_()
    work.apply_changes(0, 1)  # word 0 of the slots, which is 0 until a sequence is admitted


def run_padding(
    work: StepWork,
    buffers: StepBuffers,
    limits: SlotLimits,
    rows_B: list[int],
    num_decodes: int = 0,
    rows: LogitRows | None = None,
) -> StepLogits:
    """A step of sequences with so many rows each, all of which sample; it leaves no trace."""
    fill_with_padding(buffers, rows_B)
    first_row, seq_rows = 0, []
    for num_rows in rows_B:
        seq_rows.append((first_row, num_rows, limits.max_model_len))
        first_row += num_rows
    return work.run(StepShape(tuple(seq_rows), num_decodes, len(rows_B)), rows)


def worst_logit_rows(rows_B: list[int], device: torch.device) -> LogitRows | None:
    """The last row of each sequence, and as many before them as may score; none where there are no others."""
    last = [end - 1 for end in accumulate(rows_B)]
    others = sorted(set(range(sum(rows_B))) - set(last))[:MAX_SCORED_ROWS]
    if not others:
        return None
    rows = sorted({*last, *others})
    sampled = [rows.index(row) for row in last]
    return LogitRows(torch.tensor(rows, device=device), torch.tensor(sampled, device=device))


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


def _log_error(what: str, error: Exception) -> None:
    _log.error("%s failed its sequence", what, exc_info=error)
