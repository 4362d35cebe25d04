"""The worker without gRPC: the scheduler and the device's runner in one process, two plans in flight, no sockets.

What the service's workload costs when nothing stands between plan and step but the scheduler.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
from gpu.report.bounds import WORKLOAD, speed_check
from gpu.report.checks import Check
from gpu.report.compiling import launch_of
from gpu.report.floors import Floors, Rates, Request
from gpu.report.results import PartRecord
from gpu.report.rounds import rounds
from gpu.report.scale import Scale
from support.plan_stream import limits_of

from pagewire.client.bench.workload import NANO_VLLM_MAX_ID, Job, Span, nano_vllm
from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.scheduler_svc.engine.results import rows_of
from pagewire.scheduler_svc.engine.scheduler import Scheduler
from pagewire.scheduler_svc.engine.steps import PlannedStep
from pagewire.scheduler_svc.models.random_shapes import RANDOM_SHAPES
from pagewire.wire.columns import pack
from pagewire.wire.plan import StepResult
from pagewire.wire.requests import Submit
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.cuda.loading import load_onto
from pagewire.worker.cuda.platform import Platform

Change = Callable[[Submit], Submit]
"""What a request asks besides."""

_DEPTH = 2
_STEP_TIMEOUT_S = 60.0


class DirectRound(msgspec.Struct, frozen=True):
    """One workload, and what the device did meanwhile."""

    tokens_per_s: float
    steps: int
    busy_s: float
    idle_s: float


class DirectEngine:
    """Runs workloads on a device of its own."""

    def __init__(self, scale: Scale, platform: Platform) -> None:
        launch = launch_of(scale, scale.small_shape)
        spec = launch.model
        self._woken = threading.Event()
        loaded = load_onto(
            launch,
            platform,
            progress=lambda stage, done: None,
            on_rank_lost=lambda reason: None,
            wake=self._woken.set,
        )
        self._runner, limits = loaded.runner, limits_of(launch, loaded.hello)
        self._config = SchedulerConfig(
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            max_prefill_tokens_per_step=int(scale.settings["max_prefill_tokens_per_step"]),
            max_model_len=limits.max_model_len,
            max_queued=1024,
            max_queued_tokens=1 << 20,
            vocab_size=spec.decoder.vocab_size,
            eos_token_ids=spec.eos_token_ids,
            num_blocks=limits.num_blocks,
            block_size=limits.block_size,
            enable_prefix_caching=True,
        )
        self._epoch = 0

    def run(
        self,
        jobs: Sequence[Job],
        temperature: float,
        before_step: Callable[[int], None] = lambda number: None,
        change: Change = lambda submit: submit,
    ) -> DirectRound:
        """All jobs at once, nothing cached. `before_step` is told each step's number, from 0, before it is launched."""
        self._epoch += 1
        self._runner.begin(self._epoch)
        scheduler = Scheduler(self._config)
        in_flight: deque[PlannedStep] = deque()
        step_id = num_tokens = busy_us = idle_us = 0
        begin_s = time.perf_counter()
        for handle, job in enumerate(jobs):
            refused = scheduler.submit(0, change(_submission(handle, job, temperature)), 0.0)
            if refused is not None:
                raise ValueError(f"the scheduler refused a request: {refused}")
        while scheduler.has_work:
            step = scheduler.plan(self._epoch, step_id, 0.0) if len(in_flight) < _DEPTH else None
            if step is not None:
                before_step(step_id)
                self._runner.submit(step.plan)
                in_flight.append(step)
                step_id += 1
            if len(in_flight) == _DEPTH or step is None:
                result = self._take()
                busy_us += result.busy_us
                idle_us += result.idle_us
                num_tokens += len(scheduler.apply(in_flight.popleft(), rows_of(result)).tokens)
        wall_s = time.perf_counter() - begin_s
        if num_tokens != sum(job.max_tokens for job in jobs):
            raise ValueError(f"{num_tokens} tokens came")
        return DirectRound(num_tokens / wall_s, step_id, busy_us / 1e6, idle_us / 1e6)

    def _take(self) -> StepResult:
        while True:
            self._woken.clear()
            result = self._runner.take()
            if result is not None:
                return result
            if not self._woken.wait(_STEP_TIMEOUT_S):
                raise TimeoutError(f"the device did not end its step in {_STEP_TIMEOUT_S:g} s")


def run(scale: Scale, engine: DirectEngine, card: str, rates: Rates, record: PartRecord) -> None:
    """Tokens a second of nano-vllm's workload, a round each, after one that warms up."""
    length = Span(*scale.workload_length)
    max_id = min(NANO_VLLM_MAX_ID, RANDOM_SHAPES[scale.small_shape].vocab_size - 1)
    engine.run(nano_vllm(4, Span(4, 32), Span(4, 16), 99, max_id), 0.6)
    found: list[DirectRound] = []
    floor = 0.0
    for index in rounds(scale.workload_rounds):
        jobs = nano_vllm(scale.workload_seqs, length, length, index, max_id)
        if not index:
            requests = [Request(len(job.prompt), job.max_tokens) for job in jobs]
            floor = Floors(RANDOM_SHAPES[scale.small_shape], rates).batch_rate(requests)
        found.append(engine.run(jobs, 0.6))
        speeds = [each.tokens_per_s for each in found]
        record.add(rounds=[msgspec.structs.asdict(each) for each in found], workload_tokens_per_s=speeds)
    case = scale.one_stream
    prompt, output = Span(case.prompt, case.prompt), Span(case.output, case.output)
    alone = [engine.run(nano_vllm(1, prompt, output, 3000 + index, max_id), 0.6) for index in rounds(case.rounds)]
    record.add(one_stream=[msgspec.structs.asdict(each) for each in alone])
    middle = sorted(alone, key=lambda each: each.tokens_per_s)[len(alone) // 2]
    record.add(
        Check(
            what="one stream without gRPC, its prompt included",
            seen=middle.tokens_per_s,
            unit="tokens/s",
            floor=Floors(RANDOM_SHAPES[scale.small_shape], rates).batch_rate([Request(case.prompt, case.output)]),
        )
    )
    what = "nano-vllm workload without gRPC"
    record.add(speed_check(what, statistics.median(speeds), floor, WORKLOAD, card, not scale.is_dry))


def _submission(handle: int, job: Job, temperature: float) -> Submit:
    return Submit(
        handle=handle,
        request_id="direct",
        prompt=pack([token for token in job.prompt if isinstance(token, int)]),
        generated=b"",
        sampling=SamplingParams(temperature=temperature, top_k=0, top_p=1.0, seed=handle),
        max_tokens=job.max_tokens,
        stop_token_ids=[],
        ignore_eos=True,
        priority=0,
        salt=b"",
        max_queue_time_s=None,
    )
