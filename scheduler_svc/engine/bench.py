"""`python -m pagewire.scheduler_svc.engine.bench`: what the engine itself costs per step, in one process.

The scheduler and the worker link's codec, driven as the loop drives them, with plans in flight as configured. The
worker is played off the clock: it answers every row with a random token. Sequences have lengths as the nano-vllm
workload has them, and each that ends is replaced at once, so that a step sees the arrivals, ends, block borders and
evictions that a busy service sees.

Timed per step: `plan` (with the admissions and releases in it), `encode` of the plan, `decode` of the result's frame,
`apply` of its tokens; `step` is their sum. Nothing here is part of the service.
"""

import argparse
import gc
import random
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.scheduler_svc.engine.results import StepRows
from pagewire.scheduler_svc.engine.scheduler import Scheduler
from pagewire.scheduler_svc.engine.steps import PlannedStep
from pagewire.wire.codec import Codec, WireError, decode_json
from pagewire.wire.columns import Int32Array, pack, unpack
from pagewire.wire.plan import FromWorker, StepResult, ToWorker
from pagewire.wire.requests import Submit
from pagewire.wire.sampling import SamplingParams

PARTS = ("plan", "encode", "decode", "apply")

_VOCAB_SIZE = 151_936
_EOS = 151_645
_MAX_ID = 10_000
_FRONTEND = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineWorkload:
    """What is measured."""

    running: int
    """Sequences that run at once."""
    steps: int
    warm_up_steps: int
    input_len: tuple[int, int] = (100, 1024)
    """Fewest and most prompt tokens."""
    output_len: tuple[int, int] = (100, 1024)
    block_size: int = 32
    pipeline_depth: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("running", "steps", "block_size", "pipeline_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.warm_up_steps < 0:
            raise ValueError(f"warm_up_steps is {self.warm_up_steps}; it must be at least 0")
        for name in ("input_len", "output_len"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(f"{name} is {low}:{high}; it must be A:B with 1 <= A <= B")

    def config(self) -> SchedulerConfig:
        """Memory and budget that hold nothing back: what is measured is the steady state of `running` sequences."""
        max_model_len = self.input_len[1] + self.output_len[1]
        prefill = self.running * self.input_len[1] // self.output_len[0] + self.input_len[1]
        return SchedulerConfig(
            max_num_seqs=self.running,
            max_num_batched_tokens=self.running + prefill,
            max_prefill_tokens_per_step=prefill,
            max_model_len=max_model_len,
            max_queued=self.running,
            max_queued_tokens=self.running * max_model_len,
            vocab_size=_VOCAB_SIZE,
            eos_token_ids=(_EOS,),
            num_blocks=self.running * (-(-max_model_len // self.block_size) + 1),
            block_size=self.block_size,
            enable_prefix_caching=True,
        )


class _Arrivals:
    """Submissions without end."""

    def __init__(self, workload: EngineWorkload) -> None:
        self._workload = workload
        self._random = random.Random(workload.seed)
        self._ids = np.random.default_rng(workload.seed)
        self._handle = 0

    def next(self, *, share_left: float = 1.0) -> Submit:
        """One submission; of its output, `share_left` is still to come."""
        length = self._random.randint(*self._workload.input_len)
        self._handle += 1
        return Submit(
            handle=self._handle,
            request_id="bench",
            prompt=pack(self._ids.integers(0, _MAX_ID, length, np.int32, endpoint=True)),
            generated=b"",
            sampling=SamplingParams(0.6, 0, 1.0, self._handle),
            max_tokens=max(1, round(share_left * self._random.randint(*self._workload.output_len))),
            stop_token_ids=[],
            ignore_eos=True,
            priority=0,
            salt=b"",
            max_queue_time_s=None,
        )

    def first(self) -> list[Submit]:
        """As many as run at once, each somewhere on its way, so that they do not end together."""
        return [self.next(share_left=self._random.random()) for _ in range(self._workload.running)]


def measure(workload: EngineWorkload, clock_ns: Callable[[], int] = time.perf_counter_ns) -> dict[str, float]:
    """Run the workload; microseconds and bytes, medians but where the name says p99."""
    scheduler = Scheduler(workload.config())
    gc.collect()
    gc.freeze()  # as the loop does
    codec_out: Codec[ToWorker] = Codec(ToWorker)
    codec_in: Codec[FromWorker] = Codec(FromWorker)
    arrivals = _Arrivals(workload)
    draws = np.random.default_rng(workload.seed)
    in_flight: deque[tuple[PlannedStep, bytes]] = deque()
    for request in arrivals.first():
        scheduler.submit(_FRONTEND, request, 0.0)
    rows: list[tuple[int, int, int, int]] = []
    plan_bytes: list[int] = []
    batch_sizes: list[int] = []
    for step_id in range(workload.warm_up_steps + workload.steps + workload.pipeline_depth - 1):
        started = clock_ns()
        step = scheduler.plan(0, step_id, 0.0)
        planned = clock_ns()
        assert step is not None, "sequences run in every step"
        frame = codec_out.encode(step.plan)
        encoded = clock_ns()
        in_flight.append((step, _answer(step, draws)))
        if len(in_flight) < workload.pipeline_depth:
            continue
        oldest, result_frame = in_flight.popleft()
        received = clock_ns()
        result = codec_in.decode(result_frame)
        assert isinstance(result, StepResult)
        tokens = unpack(result.tokens)
        decoded = clock_ns()
        outcome = scheduler.apply(oldest, StepRows(tokens))
        applied = clock_ns()
        rows.append((planned - started, encoded - planned, decoded - received, applied - decoded))
        plan_bytes.append(len(frame))
        batch_sizes.append(len(step.rows))
        for _ in outcome.finishes:
            scheduler.submit(_FRONTEND, arrivals.next(), 0.0)
    times_us = np.array(rows[workload.warm_up_steps :]) / 1000
    return _summary(times_us, plan_bytes[workload.warm_up_steps :], batch_sizes[workload.warm_up_steps :])


def _answer(step: PlannedStep, draws: np.random.Generator) -> bytes:
    """The result that a worker would send."""
    tokens: Int32Array = draws.integers(0, _MAX_ID, len(step.rows), np.int32)
    return Codec[FromWorker](FromWorker).encode(StepResult(0, step.plan.step_id, pack(tokens), 0, 0))


def _summary(times_us: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", *counts: list[int]) -> dict[str, float]:
    plan_bytes, batch_sizes = counts
    steps = times_us.sum(axis=1)
    found = {f"{part}_us": float(np.median(times_us[:, column])) for column, part in enumerate(PARTS)}
    found |= {f"{part}_us_p99": float(np.percentile(times_us[:, column], 99)) for column, part in enumerate(PARTS)}
    found |= {"step_us": float(np.median(steps)), "step_us_p99": float(np.percentile(steps, 99))}
    found |= {"step_us_mean": float(steps.mean())}
    found |= {"plan_bytes": float(np.median(plan_bytes)), "plan_bytes_p99": float(np.percentile(plan_bytes, 99))}
    found |= {"rows_per_step": float(np.median(batch_sizes)), "steps": float(len(times_us))}
    return {name: round(value, 2) for name, value in found.items()}


def main() -> int:
    """Print one JSON object; 2 for a workload that cannot be."""
    parser = argparse.ArgumentParser(prog="pagewire-engine-bench")
    parser.add_argument("--workload", required=True, help="JSON object with the fields of EngineWorkload")
    try:
        workload = decode_json(parser.parse_args().workload, EngineWorkload)
    except WireError as error:
        print(f"pagewire-engine-bench: {error}", file=sys.stderr)
        return 2
    sys.stdout.buffer.write(msgspec.json.encode(measure(workload)) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
