"""Where the device's time goes, kernel by kernel, in steps of three kinds, each beside its floor: it tells slow
kernels from a device that waits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import torch
from gpu.report.checks import Check
from gpu.report.direct import DirectEngine
from gpu.report.floors import Floors, Rates
from gpu.report.results import PartRecord
from gpu.report.scale import Scale
from torch.profiler import ProfilerActivity, profile

from pagewire.client.bench.workload import NANO_VLLM_MAX_ID, Span, nano_vllm
from pagewire.scheduler_svc.models.random_shapes import RANDOM_SHAPES

_SHOWN = 25
_NAME_LENGTH = 100


class _Steps(msgspec.Struct, frozen=True, kw_only=True):
    """Sequences alike, and so many of their steps from the `first` on."""

    num_seqs: int
    prompt: int
    output: int
    first: int
    count: int


def run(scale: Scale, engine: DirectEngine, rates: Rates, record: PartRecord) -> None:
    """A row for each kind of step, and its kernels among the figures: µs and launches of each in a step."""
    floors = Floors(RANDOM_SHAPES[scale.small_shape], rates)
    budget = int(scale.settings["max_num_batched_tokens"])
    length, count = scale.prefill_length, 3 if scale.is_dry else 24
    for streams in (1, scale.workload_seqs):
        name = f"decode step, {streams} stream{'s' * (streams > 1)}"
        with record.attempt(name):
            prefill_steps = math.ceil(streams * length / budget)
            first = 2 * prefill_steps + 8
            steps = _Steps(num_seqs=streams, prompt=length, output=first + count + 8, first=first, count=count)
            found = _kernels(engine, scale, steps)
            context = length + first + (count - prefill_steps) // 2
            _note(record, f"{name} at a context of {context}", found, floors.decode_step_s(streams, streams * context))
    num_prompts = max(1, budget // length)
    name = f"step of {num_prompts} prompts of {length}"
    with record.attempt(name):
        found = _kernels(engine, scale, _Steps(num_seqs=4 * num_prompts, prompt=length, output=1, first=1, count=2))
        _note(record, name, found, num_prompts * floors.prefill_s(length))


def _kernels(engine: DirectEngine, scale: Scale, steps: _Steps) -> Mapping[str, tuple[float, float]]:
    """Seconds and launches in one step, by kernel, the longest first."""
    is_cuda = scale.device == "cuda"
    profiler = profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU])

    def before_step(number: int) -> None:
        if number not in (steps.first, steps.first + steps.count):
            return
        if is_cuda:
            torch.cuda.synchronize()
        if number == steps.first:
            profiler.start()
        else:
            profiler.stop()

    max_id = min(NANO_VLLM_MAX_ID, RANDOM_SHAPES[scale.small_shape].vocab_size - 1)
    prompt, output = Span(steps.prompt, steps.prompt), Span(steps.output, steps.output)
    jobs = nano_vllm(steps.num_seqs, prompt, output, 4000 + steps.num_seqs, max_id)
    engine.run(jobs, 0.6, before_step)
    times = {
        event.key: (event.self_device_time_total if is_cuda else event.self_cpu_time_total, event.count)
        for event in profiler.key_averages()
    }
    return {
        name: (time_us / 1e6 / steps.count, launches / steps.count)
        for name, (time_us, launches) in sorted(times.items(), key=lambda item: -item[1][0])
    }


def _note(record: PartRecord, what: str, kernels: Mapping[str, tuple[float, float]], floor_s: float) -> None:
    seconds = sum(time_s for time_s, _ in kernels.values())
    longest = {
        name[:_NAME_LENGTH]: {"us": round(time_s * 1e6, 2), "launches": round(launches, 2)}
        for name, (time_s, launches) in list(kernels.items())[:_SHOWN]
    }
    record.add(
        Check(what=f"kernels of a {what}", seen=seconds * 1e3, unit="ms", floor=floor_s * 1e3), **{what: longest}
    )
