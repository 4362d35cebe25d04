"""Measures what the worker costs besides the model: `python tests/benchmarks/measure_worker.py`.

Prints the sampler's times, the cost of slot state and batch building per step, and how many steps a second the sim
device answers over a real socket with two plans in flight.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.worker_plans import PlanMaker, admit
from support.worker_process import ScriptedEngine, WorkerProcess, ipc_address, sim_launch

from pagewire.wire.columns import row_of
from pagewire.wire.plan import Begin
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.cpu.batch_builder import BatchBuilder
from pagewire.worker.native.machine import usable_cores
from pagewire.worker.sampling.sampler import Sampler
from pagewire.worker.slots.columns import SlotLimits
from pagewire.worker.slots.state import Slots

VOCAB_SIZE = 151_936
NUM_SLOTS = 256
BLOCK_SIZE = 32


def median_us(call: Callable[[], object], repeats: int) -> float:
    """Median time of a call, in microseconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times[repeats // 10 :]) * 1e6


def measure_sampler() -> None:
    """Rows of random logits with a spread like a language model's (a few likely tokens, a long tail)."""
    generator = np.random.default_rng(0)
    peaks = generator.standard_normal((32, VOCAB_SIZE)) * 2 + 12 * (generator.random((32, VOCAB_SIZE)) < 1e-4)
    logits = torch.from_numpy(peaks.astype(np.float32))
    sampler = Sampler(VOCAB_SIZE)
    cases = {"greedy": (0.0, 0, 1.0), "plain": (0.6, 0, 1.0), "k20 p0.8": (0.6, 20, 0.8), "p0.95": (0.6, 0, 0.95)}
    for name, (temperature, top_k, top_p) in cases.items():
        times = []
        for count in (1, 8, 32):
            rows = np.full(count, row_of(SamplingParams(temperature, top_k, top_p)))
            rows["seed"] = np.arange(count)
            sample = partial(sampler.sample, logits[:count], rows, np.arange(count, dtype=np.int32))
            times.append(median_us(sample, 60) / 1000)
        print(f"sampler {name:9} at 1 / 8 / 32 rows of {VOCAB_SIZE}: " + " / ".join(f"{ms:.2f}" for ms in times), "ms")


def start_decoding(maker: PlanMaker, num_blocks_each: int) -> list[object]:
    """Plans after which every slot decodes, with room for the tokens of the measurement."""
    admits = [
        admit(slot, [1], list(range(slot * num_blocks_each, (slot + 1) * num_blocks_each))) for slot in range(NUM_SLOTS)
    ]
    return [maker.make(admits=admits, chunks=[(slot, 1) for slot in range(NUM_SLOTS)])]


def measure_slots() -> None:
    """Steady decode at 256 slots, each step's plan empty but for its number; and one with 8 grown blocks."""
    limits = SlotLimits(
        max_num_seqs=NUM_SLOTS,
        max_model_len=4096,
        max_num_batched_tokens=NUM_SLOTS,
        block_size=BLOCK_SIZE,
        num_blocks=NUM_SLOTS * 128,
        vocab_size=VOCAB_SIZE,
    )
    slots, maker = Slots(limits), PlanMaker()
    slots.begin(1)
    for plan in start_decoding(maker, 32):
        slots.apply(plan)
    builder = BatchBuilder(slots.columns, limits)
    apply_us = median_us(lambda: slots.apply(maker.make()), 400)
    step = slots.apply(maker.make())
    build_us = median_us(lambda: builder.build(step), 400)
    next_block = iter(range(NUM_SLOTS * 32, NUM_SLOTS * 128))
    grow_us = median_us(lambda: slots.apply(maker.make(grow=[(slot, next(next_block)) for slot in range(8)])), 80)
    print(f"{NUM_SLOTS} decoding slots: apply {apply_us:.0f} us, with 8 blocks grown {grow_us:.0f} us", end="; ")
    print(f"build the batch at context ~400 {build_us:.0f} us")


def measure_sim(num_steps: int = 3000) -> None:
    """Steps a second of a sim worker process, two plans in flight."""
    blocks_each = (num_steps + 64) // BLOCK_SIZE + 1
    with ipc_address() as address, ScriptedEngine(address) as engine, tempfile.TemporaryDirectory() as directory:
        launch = sim_launch(
            address,
            max_num_seqs=NUM_SLOTS,
            max_num_batched_tokens=NUM_SLOTS,
            max_model_len=blocks_each * BLOCK_SIZE,
            block_size=BLOCK_SIZE,
        )
        with WorkerProcess(launch, Path(directory)):
            engine.receive()
            maker = PlanMaker()
            engine.send(Begin(1))
            for plan in start_decoding(maker, blocks_each):
                engine.send(plan)
            engine.send(maker.make())
            busy, idle = [], []
            started = time.perf_counter()
            for _ in range(num_steps):
                result = engine.receive()
                busy.append(result.busy_us)
                idle.append(result.idle_us)
                engine.send(maker.make())
            rate = num_steps / (time.perf_counter() - started)
    print(
        f"sim over ipc, {NUM_SLOTS} decoding slots, two plans in flight: {rate:.0f} steps/s, "
        f"{rate * NUM_SLOTS:.0f} tokens/s; median busy {statistics.median(busy):.0f} us, "
        f"between steps {statistics.median(idle):.0f} us"
    )


if __name__ == "__main__":
    torch.set_num_threads(usable_cores())
    measure_slots()
    measure_sim()
    measure_sampler()
