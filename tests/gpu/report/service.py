"""Speeds through the gRPC service: a `pagewire serve` of its own, and the load client of `pagewire bench` here."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from gpu.report.bounds import LARGE, MAX_IDLE_SHARE, ONE_STREAM, PREFILL, WORKLOAD, SpeedBound, speed_check
from gpu.report.checks import Check
from gpu.report.floors import Floors, Rates, Request
from gpu.report.scale import DecodeCase, Scale
from gpu.report.window import DecodeWindow, decode_window

from pagewire.client.bench import runs
from pagewire.client.bench.runs import Outcome, RunSettings, Steady
from pagewire.client.bench.session import Service, Session
from pagewire.client.bench.workload import NANO_VLLM_MAX_ID, Job, Span, nano_vllm
from pagewire.client.local import LocalService
from pagewire.client.sync import Client
from pagewire.client.transport import Transport
from pagewire.scheduler_svc.models.random_shapes import RANDOM_SHAPES

TEMPERATURE = 0.6
_START_TIMEOUT_S = 110.0


class Bench:
    """One service, and what it is measured by."""

    def __init__(self, session: Session, scale: Scale, shape: str, card: str, rates: Rates) -> None:
        self._session = session
        self._scale = scale
        self._card = card
        self._config = RANDOM_SHAPES[shape]
        self._floors = Floors(self._config, rates)
        self._settings = RunSettings(
            temperature=TEMPERATURE, seed=0, max_id=min(NANO_VLLM_MAX_ID, self._config.vocab_size - 1), warm_up=4
        )

    def jobs(self, num_seqs: int, prompt: Span, output: Span, seed: int) -> list[Job]:
        """As nano-vllm draws them; those of another seed share no prefix."""
        return nano_vllm(num_seqs, prompt, output, seed, self._settings.max_id)

    async def workload(self) -> tuple[Check, dict[str, object]]:
        """nano-vllm's."""
        scale, length = self._scale, Span(*self._scale.workload_length)
        rates, floor = [], 0.0
        for index in range(scale.workload_rounds):
            jobs = self.jobs(scale.workload_seqs, length, length, index)
            if not index:
                floor = self._floors.batch_rate([Request(len(job.prompt), job.max_tokens) for job in jobs])
            rates.append((await self._at_once(jobs)).summary.output_tokens_per_s)
        name = f"nano-vllm workload, {self._config_name}"
        return self._speed(name, statistics.median(rates), floor, WORKLOAD), {"workload_tokens_per_s": rates}

    async def decode(self, name: str, case: DecodeCase) -> Check:
        """Streams that decode together around one context."""
        windows = [await self._window(case, index) for index in range(case.rounds)]
        middle = sorted(windows, key=lambda window: window.tokens_per_s)[len(windows) // 2]
        floor = self._floors.decode_rate(case.streams, middle.mean_context)
        bound = ONE_STREAM if case.streams == 1 else LARGE
        return self._speed(f"{name} at a context of {middle.mean_context:.0f}", middle.tokens_per_s, floor, bound)

    async def prefill(self) -> Check:
        """Prompts of one length, a token each."""
        scale = self._scale
        length, rates = Span(scale.prefill_length, scale.prefill_length), []
        for index in range(scale.prefill_rounds):
            jobs = self.jobs(scale.prefill_prompts, length, Span(1, 1), 1000 + index)
            summary = (await self._at_once(jobs)).summary
            rates.append(summary.prompt_tokens / summary.wall_s)
        floor = self._floors.prefill_rate(scale.prefill_length)
        return self._speed(f"prefill of {scale.prefill_length} tokens", statistics.median(rates), floor, PREFILL)

    async def steady(self) -> tuple[Check, dict[str, object]]:
        """Share of its time that the device waits, while streams decode and none begins."""
        scale = self._scale
        case = Steady(
            streams=scale.steady_streams,
            input_len=scale.steady_prompt,
            output_len=Span(scale.steady_output, scale.steady_output),
            ramp_s=scale.steady_ramp_s,
            duration_s=scale.steady_s,
        )
        outcome = await runs.steady(self._session, self._settings, case)
        share = outcome.summary.worker_idle_share
        if share is None:
            raise ValueError("the engine reported no step in the steady window")
        check = Check(
            what=f"idle share of the device in steady decode, {scale.steady_streams} streams",
            seen=share,
            unit="",
            relation="at most",
            limit=MAX_IDLE_SHARE,
            is_judged=not scale.is_dry,
        )
        return check, {"steady_tokens_per_s": outcome.summary.output_tokens_per_s}

    async def peer_workload(self) -> float:
        """Tokens a second of what the peer is compared on."""
        scale = self._scale
        output = Span(scale.peer_output, scale.peer_output)
        jobs = self.jobs(scale.peer_seqs, Span(*scale.peer_prompt), output, 2000)
        return (await self._at_once(jobs)).summary.output_tokens_per_s

    @property
    def _config_name(self) -> str:
        return self._session.service.model.name

    def _speed(self, name: str, seen: float, floor: float, bound: SpeedBound) -> Check:
        return speed_check(name, seen, floor, bound, self._card, not self._scale.is_dry)

    async def _at_once(self, jobs: Sequence[Job]) -> Outcome:
        outcome = await runs.throughput(self._session, jobs, self._settings)
        if outcome.summary.failed:
            raise ValueError(f"{outcome.summary.failed} requests failed: {'; '.join(outcome.summary.errors)}")
        return outcome

    async def _window(self, case: DecodeCase, index: int) -> DecodeWindow:
        prompt, output = Span(case.prompt, case.prompt), Span(case.output, case.output)
        jobs = self.jobs(case.streams, prompt, output, 3000 + index)
        return decode_window((await self._at_once(jobs)).readings)


@contextmanager
def spawned(scale: Scale, shape: str) -> Iterator[tuple[Service, float]]:
    """A service of a random model, and the seconds until it served."""
    begin_s = time.perf_counter()
    settings = {"log_level": "warning", **scale.settings}
    local = LocalService(f"random:{shape}", settings, quiet=True)
    try:
        ready = local.start(_START_TIMEOUT_S)
        with Client(ready.address) as client:
            model = client.model()
        found = Service(
            transport=Transport(target=ready.address), admin=Transport(target=ready.admin_address), model=model
        )
        yield found, time.perf_counter() - begin_s
    finally:
        local.stop()


@asynccontextmanager
async def bench_of(
    found: Service, scale: Scale, shape: str, card: str, rates: Rates
) -> AsyncIterator[tuple[Bench, dict[str, object]]]:
    """A bench over a running service, and what the service says of itself."""
    async with Session(found) as session:
        info = await session.server_info()
        said: dict[str, object] = {}
        if info is not None:
            said = {
                "attention": info.attention_backend,
                "linear": info.linear_backend,
                "versions": dict(info.versions),
                "settings": dict(info.settings),
            }
        yield Bench(session, scale, shape, card, rates), said


async def small_model(found: Service, scale: Scale, card: str, rates: Rates) -> tuple[list[Check], dict[str, object]]:
    """Everything that is measured on the small model."""
    async with bench_of(found, scale, scale.small_shape, card, rates) as (bench, said):
        workload, figures = await bench.workload()
        one = await bench.decode(f"one stream, {scale.small_shape}", scale.one_stream)
        prefill = await bench.prefill()
        idle, steady_figures = await bench.steady()
        figures |= steady_figures | {"peer_workload_tokens_per_s": await bench.peer_workload(), "service": said}
    return [workload, one, prefill, idle], figures


async def large_model(found: Service, scale: Scale, card: str, rates: Rates) -> tuple[list[Check], dict[str, object]]:
    """What is measured on the large one."""
    async with bench_of(found, scale, scale.large_shape, card, rates) as (bench, said):
        case = scale.large_case
        return [await bench.decode(f"{case.streams} streams, {scale.large_shape}", case)], {"service": said}
