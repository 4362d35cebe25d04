"""From a model to a runner, and the memory it is given; on the CPU, with a meter that does as it is told."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import msgspec
import pytest
import torch
from support.device_runner import (
    REFERENCE,
    CountingModel,
    device_decoder,
    plain_decoder,
    run,
    tiny_config,
    tiny_spec,
)
from support.host_device import CpuPlatform, EagerCapture
from support.worker_plans import SMALL, PlanMaker, admit
from support.worker_process import sim_launch

from pagewire.wire.columns import unpack
from pagewire.wire.launch import WorkerLaunch
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache, bytes_per_block
from pagewire.worker.cpu.runner import CpuRunner
from pagewire.worker.cuda.bring_up import CudaStart, bring_up, worst_rows
from pagewire.worker.cuda.graphs import Launch, Result
from pagewire.worker.cuda.memory import GIB, MemoryReport, MemoryUse, describe_budget, estimated_graph_bytes, kv_budget
from pagewire.worker.cuda.runner import CudaRunner
from pagewire.worker.cuda.step_work import Model
from pagewire.worker.kernels.contract import Kernels, SlotTensors
from pagewire.worker.slots.columns import SlotLimits

CONFIG = tiny_config(SMALL.vocab_size)
BLOCK = bytes_per_block(CONFIG, SMALL.block_size, torch.float32)
TOTAL, WEIGHTS, BUFFERS, PEAK = 1000 * BLOCK, 100 * BLOCK, 10 * BLOCK, 7 * BLOCK
LAUNCH = sim_launch(
    "ipc:///nowhere",
    device="cuda",
    dtype="float32",
    model=tiny_spec(CONFIG),
    max_num_seqs=SMALL.max_num_seqs,
    max_model_len=SMALL.max_model_len,
    max_num_batched_tokens=SMALL.max_num_batched_tokens,
    block_size=SMALL.block_size,
    gpu_memory_utilization=1.0,
)


class ScriptedDevice:
    """A device of 1000 blocks' size. A graph of size n takes n blocks."""

    def __init__(self, in_use: int) -> None:
        self.in_use = in_use
        self.num_graphs: list[list[str]] = []
        """Of every capture, a mark per graph."""
        self._alive: weakref.WeakSet[CountingCapture] = weakref.WeakSet()

    def total(self) -> int:
        return TOTAL

    def free(self) -> int:
        return TOTAL - self.in_use - sum(capture.num_bytes for capture in self._alive)

    def allocated(self) -> int:
        return WEIGHTS + BUFFERS + BLOCK  # and the one block of the cache for profiling

    def peak(self, work: Callable[[], None]) -> int:
        work()
        return PEAK

    def new_capture(self) -> "CountingCapture":
        capture = CountingCapture()
        self._alive.add(capture)
        self.num_graphs.append(capture.marks)
        return capture


class CountingCapture:
    def __init__(self) -> None:
        self.marks: list[str] = []
        self._eager = EagerCapture()

    @property
    def num_bytes(self) -> int:
        """The first takes 20 blocks, the others 2 each."""
        return (20 + 2 * (len(self.marks) - 1)) * BLOCK if self.marks else 0

    def capture(self, work: Launch[Result]) -> Launch[Result]:
        self.marks.append("captured")
        launch = self._eager.capture(work)

        def replay() -> Result:
            """Keeps its capture alive, as a graph keeps its pool."""
            assert self.marks
            return launch()

        return replay


class WatchedModel:
    """Remembers the batches that it has seen."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.shapes: list[tuple[int, int, int]] = []
        self.num_blocks: list[int] = []

    def forward(self, batch: Batch, kv: KVCache) -> torch.Tensor:
        self.shapes.append((len(batch.input_ids_T), len(batch.sample_rows_S), batch.num_decodes))
        self.num_blocks.append(kv.num_blocks)
        return self._model.forward(batch, kv)


class ScriptedPlatform(CpuPlatform):
    """The CPU with a scripted device's memory."""

    def __init__(self, device: ScriptedDevice) -> None:
        super().__init__()
        self.meter = device  # type: ignore[assignment]
        self.new_capture = device.new_capture  # type: ignore[assignment, method-assign]


class Brought(NamedTuple):
    runner: CudaRunner
    limits: SlotLimits
    report: MemoryReport


def bring(model: Model, device: ScriptedDevice, launch: WorkerLaunch = LAUNCH, kernels: Kernels = REFERENCE) -> Brought:
    start = CudaStart(
        launch=launch,
        platform=ScriptedPlatform(device),
        kernels=kernels,
        model=model,
        config=CONFIG,
        block_size=SMALL.block_size,
        before_model_bytes=5 * BLOCK,
        weights_bytes=WEIGHTS,
    )
    return Brought(*bring_up(start, watch=lambda times: None, progress=lambda stage, done: None))


def test_the_cache_takes_what_the_rest_leaves() -> None:
    device = ScriptedDevice(in_use=950 * BLOCK)
    model = WatchedModel(CountingModel(SMALL.vocab_size))
    brought = bring(model, device)
    # Free are 50, less 7 of activations, less 20 + 3 × 2 for the sizes 1, 2, 4 and 6.
    assert brought.limits.num_blocks == 50 - 7 - 26
    report = brought.report
    assert (report.device, report.before_model, report.weights) == (TOTAL, 5 * BLOCK, WEIGHTS)
    assert (report.buffers, report.activations, report.graphs) == (BUFFERS, PEAK, 26 * BLOCK)
    assert report.kv_cache == 17 * BLOCK
    assert [len(marks) for marks in device.num_graphs] == [2, 4]
    # The worst step twice and two captures, over a cache of one block. Over the real one: the worst step and small
    # ones to warm up (one of a decode), every size, the largest first, and the worst step.
    worst, small = (24, 24, 5), [(1, 1, 1), (1, 1, 0), (3, 1, 0), (16, 1, 0), (17, 1, 0), (3, 2, 0)]
    tried, captured = [[(size, size, size) for size in sizes] for sizes in ((6, 4), (6, 4, 2, 1))]
    assert model.shapes == [worst, worst, *tried, worst, *small, *captured, worst]
    assert model.num_blocks == [1] * 4 + [17] * (1 + len(small) + 4 + 1)
    plan = PlanMaker().make(admits=[admit(0, [4, 5], [0])], chunks=[(0, 2)])
    brought.runner.begin(1)
    assert unpack(run(brought.runner, plan).tokens).tolist() == [6]


@pytest.mark.parametrize("enforce_eager", [False, True])
def test_every_kernel_has_run_before_the_first_plan(enforce_eager: bool) -> None:
    """Also the one that no step contains: it would be compiled while the first prompt waits."""
    arenas: list[torch.Tensor] = []

    def apply_changes(slots: SlotTensors, indices_C: torch.Tensor, values_C: torch.Tensor) -> None:
        REFERENCE.apply_changes(slots, indices_C, values_C)
        arenas.append(slots.arena)

    kernels = replace(REFERENCE, apply_changes=apply_changes)
    terms = msgspec.structs.replace(LAUNCH, enforce_eager=enforce_eager)
    brought = bring(CountingModel(SMALL.vocab_size), ScriptedDevice(in_use=0), terms, kernels)
    assert len(arenas) == 1
    assert not arenas[0].any(), "a slot was changed"
    plan = PlanMaker().make(admits=[admit(0, [4, 5], [0])], chunks=[(0, 2)])
    brought.runner.begin(1)
    assert unpack(run(brought.runner, plan).tokens).tolist() == [6]


def test_the_cache_is_never_larger_than_what_can_be_used() -> None:
    brought = bring(CountingModel(SMALL.vocab_size), ScriptedDevice(in_use=0))
    assert brought.limits.num_blocks == SMALL.max_num_seqs * SMALL.max_blocks_per_seq


def test_a_utilization_below_one_leaves_its_part_of_the_device() -> None:
    device = ScriptedDevice(in_use=800 * BLOCK)
    brought = bring(
        CountingModel(SMALL.vocab_size), device, msgspec.structs.replace(LAUNCH, gpu_memory_utilization=0.85)
    )
    assert brought.limits.num_blocks == 50 - 7 - 26


def test_enforce_eager_captures_nothing() -> None:
    device = ScriptedDevice(in_use=970 * BLOCK)
    brought = bring(CountingModel(SMALL.vocab_size), device, msgspec.structs.replace(LAUNCH, enforce_eager=True))
    assert brought.limits.num_blocks == 30 - 7
    assert not device.num_graphs


def test_kv_cache_bytes_is_obeyed_where_there_is_room() -> None:
    device = ScriptedDevice(in_use=950 * BLOCK)
    terms = msgspec.structs.replace(LAUNCH, kv_cache_bytes=12 * BLOCK + 1, gpu_memory_utilization=0.1)
    assert bring(CountingModel(SMALL.vocab_size), device, terms).limits.num_blocks == 12
    with pytest.raises(ValueError, match=f"kv_cache_bytes is {18 * BLOCK}; the device has room for {17 * BLOCK}"):
        bring(
            CountingModel(SMALL.vocab_size),
            ScriptedDevice(950 * BLOCK),
            msgspec.structs.replace(terms, kv_cache_bytes=18 * BLOCK),
        )


def test_a_device_without_room_for_one_sequence_says_where_its_memory_went() -> None:
    with pytest.raises(ValueError, match=r"gpu_memory_utilization 1\.0 of .* of weights, .* fewer than one sequence"):
        bring(CountingModel(SMALL.vocab_size), ScriptedDevice(in_use=960 * BLOCK))


def test_a_real_decoder_brought_up_answers_as_the_plain_runner() -> None:
    decoder = plain_decoder(CONFIG)
    brought = bring(device_decoder(decoder, SMALL), ScriptedDevice(in_use=0))
    limits = brought.limits
    plain = CpuRunner(decoder, KVCache(CONFIG, limits.num_blocks, limits.block_size, torch.float32), limits)
    plain.begin(1)
    brought.runner.begin(1)
    maker = PlanMaker()
    for plan in [
        maker.make(admits=[admit(s, [7, s, 9], [2 * s, 2 * s + 1]) for s in range(4)], chunks=[(s, 3) for s in (2, 0)]),
        maker.make(chunks=[(1, 3), (3, 2)]),
        *(maker.make() for _ in range(3)),
    ]:
        assert unpack(run(brought.runner, plan).tokens).tolist() == plain.run(plan).tokens.tolist()


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, [1, 1, 1, 1, 1, 19]),
        ({"max_num_batched_tokens": 6}, [1] * 6),
        ({"max_num_batched_tokens": 60}, [1, 1, 1, 1, 16, 40]),
        ({"max_num_batched_tokens": 10_000}, [40] * 6),
        ({"max_num_seqs": 1}, [24]),
    ],
)
def test_the_worst_step(changes: dict[str, int], rows: list[int]) -> None:
    assert worst_rows(replace(SMALL, **changes)) == rows


USE = MemoryUse(
    device=80 * GIB,
    before_model=1 * GIB,
    weights=16 * GIB,
    buffers=GIB // 4,
    activations=2 * GIB,
    graphs=1 * GIB,
    free=62 * GIB,
)


@pytest.mark.parametrize(("utilization", "budget"), [(1.0, 59), (0.9, 51), (0.5, 19), (0.25, -1)])
def test_budget(utilization: float, budget: int) -> None:
    assert kv_budget(USE, utilization) == budget * GIB


def test_budget_in_words() -> None:
    assert describe_budget(USE, 0.9) == (
        "gpu_memory_utilization 0.9 of 80.00 GiB, which leaves 51.00 GiB beside 1.00 GiB in use before the model, "
        "16.00 GiB of weights, 0.25 GiB of buffers, 2.00 GiB of activations and 1.00 GiB of graphs,"
    )


@pytest.mark.parametrize(
    ("first", "second", "num_graphs", "estimate"), [(100, 3, 5, 112), (100, 100, 1, 100), (-4, -4, 9, 0)]
)
def test_graphs_are_estimated_from_two(first: int, second: int, num_graphs: int, estimate: int) -> None:
    assert estimated_graph_bytes(first, second, num_graphs) == estimate


def test_the_report_in_the_log() -> None:
    brought = bring(CountingModel(SMALL.vocab_size), ScriptedDevice(in_use=950 * BLOCK))
    lines = brought.report.lines()
    assert lines[0].startswith("device memory: ")
    assert [line.split("GiB ")[1] for line in lines[1:]] == [
        "before the model",
        "weights",
        "buffers",
        "activations of the worst step",
        "graphs",
        "KV cache",
        "free",
    ]
    device = brought.report.for_engine()
    assert (device.total_bytes, device.graph_bytes) == (TOTAL, 26 * BLOCK)
