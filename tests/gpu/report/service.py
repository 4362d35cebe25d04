"""Speeds through the gRPC service: a `pagewire serve` of its own, and the load client of `pagewire bench` here."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import pairwise
from pathlib import Path

from gpu.report.bounds import LARGE, MAX_IDLE_SHARE, ONE_STREAM, PREFILL, WORKLOAD, SpeedBound, speed_check
from gpu.report.checks import Check
from gpu.report.floors import Floors, Rates, Request
from gpu.report.results import PartRecord
from gpu.report.rounds import rounds
from gpu.report.scale import DecodeCase, Scale
from gpu.report.window import DecodeWindow, decode_window

from pagewire.client.bench import runs
from pagewire.client.bench.runs import Outcome, RunSettings, Steady
from pagewire.client.bench.session import Service, Session, Trace
from pagewire.client.bench.summary import read
from pagewire.client.bench.workload import NANO_VLLM_MAX_ID, Job, Span, nano_vllm
from pagewire.client.local import LocalService
from pagewire.client.sync import Client
from pagewire.client.transport import Transport
from pagewire.scheduler_svc.models.random_shapes import RANDOM_SHAPES

TEMPERATURE = 0.6
_START_TIMEOUT_S = 240.0
"""More than every kernel takes to compile one after the other, where none is compiled yet; the part's own limit may be
shorter."""
_MEASURE_LIMIT_S = 60.0
_LOOK_S = 0.01


class Bench:
    """One service, and what it is measured by."""

    def __init__(
        self, session: Session, pid: int, scale: Scale, shape: str, card: str, rates: Rates, record: PartRecord
    ) -> None:
        """`pid` is the service's."""
        self._session = session
        self._pid = pid
        self._scale = scale
        self._shape = shape
        self._card = card
        self._config = RANDOM_SHAPES[shape]
        self._floors = Floors(self._config, rates)
        self._settings = RunSettings(
            temperature=TEMPERATURE, seed=0, max_id=min(NANO_VLLM_MAX_ID, self._config.vocab_size - 1), warm_up=4
        )
        self._record = record
        self._summaries: dict[str, list[dict[str, object]]] = {}

    async def measure(self, measures: Mapping[str, Callable[[], Awaitable[None]]]) -> None:
        """One after the other; one that fails or hangs keeps none of the others from being done."""
        for name, run in measures.items():
            with self._record.attempt(name):
                try:
                    async with asyncio.timeout(_MEASURE_LIMIT_S):
                        await run()
                except TimeoutError as error:
                    raise TimeoutError(f"not done after {_MEASURE_LIMIT_S:g} s") from error

    def jobs(self, num_seqs: int, prompt: Span, output: Span, seed: int) -> list[Job]:
        """As nano-vllm draws them; those of another seed share no prefix."""
        return nano_vllm(num_seqs, prompt, output, seed, self._settings.max_id)

    async def workload(self) -> None:
        """nano-vllm's."""
        scale, length = self._scale, Span(*self._scale.workload_length)
        rates, floor = [], 0.0
        for index in rounds(scale.workload_rounds):
            jobs = self.jobs(scale.workload_seqs, length, length, index)
            if not index:
                floor = self._floors.batch_rate([Request(len(job.prompt), job.max_tokens) for job in jobs])
            outcome = await self._at_once("workload", jobs)
            rates.append(outcome.summary.output_tokens_per_s)
            self._record.add(workload_tokens_per_s=rates)
        self._judge(f"nano-vllm workload, {self._config_name}", statistics.median(rates), floor, WORKLOAD)

    async def decode(self, case: DecodeCase) -> None:
        """Streams that decode together around one context."""
        name, bound = ("one stream", ONE_STREAM) if case.streams == 1 else (f"{case.streams} streams", LARGE)
        windows = [await self._window(name, case, index) for index in rounds(case.rounds)]
        middle = sorted(windows, key=lambda window: window.tokens_per_s)[len(windows) // 2]
        floor = self._floors.decode_rate(case.streams, middle.mean_context)
        what = f"{name}, {self._shape} at a context of {middle.mean_context:.0f}"
        self._judge(what, middle.tokens_per_s, floor, bound)

    async def prefill(self) -> None:
        """Prompts of one length, a token each."""
        scale = self._scale
        length, rates = Span(scale.prefill_length, scale.prefill_length), []
        for index in rounds(scale.prefill_rounds):
            jobs = self.jobs(scale.prefill_prompts, length, Span(1, 1), 1000 + index)
            summary = (await self._at_once("prefill", jobs)).summary
            rates.append(summary.prompt_tokens / summary.wall_s)
        floor = self._floors.prefill_rate(scale.prefill_length)
        self._judge(f"prefill of {scale.prefill_length} tokens", statistics.median(rates), floor, PREFILL)

    async def steady(self) -> None:
        """Share of its time that the device waits, while streams decode and none begins."""
        scale = self._scale
        case = Steady(
            streams=scale.steady_streams,
            input_len=scale.steady_prompt,
            output_len=Span(scale.steady_output, scale.steady_output),
            ramp_s=scale.steady_ramp_s,
            duration_s=scale.steady_s,
        )
        outcome = self._kept("steady", await runs.steady(self._session, self._settings, case))
        share = outcome.summary.worker_idle_share
        if share is None:
            raise ValueError("the engine reported no step in the steady window")
        self._record.add(
            Check(
                what=f"idle share of the device in steady decode, {scale.steady_streams} streams",
                seen=share,
                unit="",
                relation="at most",
                limit=MAX_IDLE_SHARE,
                is_judged=not scale.is_dry,
            )
        )

    async def restart(self) -> None:
        """Streams whose worker is killed: all come to their end, by the worker that is started in its place."""
        scale, session = self._scale, self._session
        worker = _worker_of(self._pid)
        jobs = self.jobs(scale.restart_streams, Span(8, 8), Span(scale.restart_output, scale.restart_output), 5000)
        traces = [Trace(session.clock()) for _ in jobs]
        streams = [
            asyncio.ensure_future(session.stream(session.encode(job, TEMPERATURE), trace=trace))
            for job, trace in zip(jobs, traces, strict=True)
        ]
        # A trace tells nobody when something has come.
        while not all(trace.times_s or trace.error for trace in traces):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        os.kill(worker, signal.SIGKILL)
        await asyncio.gather(*streams)
        readings = [read(trace) for trace in traces]
        pauses = [after - before for reading in readings for (before, _), (after, _) in pairwise(reading.arrivals)]
        self._record.add(
            Check(
                what=f"tokens of {scale.restart_streams} streams whose worker was killed",
                seen=float(sum(count for reading in readings for _, count in reading.arrivals)),
                unit="tokens",
                relation="at least",
                limit=float(scale.restart_streams * scale.restart_output),
            ),
            Check(what="their longest pause", seen=max(pauses, default=0.0), unit="s"),
            errors=sorted({reading.error for reading in readings}),
            worker_pids=[worker, _worker_of(self._pid)],
        )

    async def peer_workload(self) -> None:
        """What the peer is compared on."""
        scale = self._scale
        output = Span(scale.peer_output, scale.peer_output)
        outcome = await self._at_once("peer", self.jobs(scale.peer_seqs, Span(*scale.peer_prompt), output, 2000))
        self._record.add(peer_workload_tokens_per_s=outcome.summary.output_tokens_per_s)

    @property
    def _config_name(self) -> str:
        return self._session.service.model.name

    def _judge(self, what: str, seen: float, floor: float, bound: SpeedBound) -> None:
        self._record.add(speed_check(what, seen, floor, bound, self._card, not self._scale.is_dry))

    async def _at_once(self, name: str, jobs: Sequence[Job]) -> Outcome:
        return self._kept(name, await runs.throughput(self._session, jobs, self._settings))

    async def _window(self, name: str, case: DecodeCase, index: int) -> DecodeWindow:
        prompt, output = Span(case.prompt, case.prompt), Span(case.output, case.output)
        jobs = self.jobs(case.streams, prompt, output, 3000 + index)
        return decode_window((await self._at_once(name, jobs)).readings)

    def _kept(self, name: str, outcome: Outcome) -> Outcome:
        """The same, its summary written down. Raises ValueError where a request failed."""
        self._summaries.setdefault(name, []).append(outcome.summary.as_json())
        self._record.add(summaries=self._summaries)
        if outcome.summary.failed:
            raise ValueError(f"{outcome.summary.failed} requests failed: {'; '.join(outcome.summary.errors)}")
        return outcome


def _worker_of(pid: int) -> int:
    """The worker process of a service. Raises ValueError where there is none."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError, ValueError):
            parent = int(file.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(file.parent.name))
    left = [pid]
    while left:
        found = left.pop()
        with suppress(OSError):
            if b"pagewire.worker\0run" in Path(f"/proc/{found}/cmdline").read_bytes():
                return found
        left += children.get(found, [])
    raise ValueError("the service has no worker process")


@contextmanager
def spawned(scale: Scale, shape: str, record: PartRecord) -> Iterator[tuple[Service, int]]:
    """A service of a random model, and its process; notes the seconds until it served. What it says goes to stderr."""
    begin_s = time.perf_counter()
    local = LocalService(f"random:{shape}", dict(scale.settings), quiet=False)
    try:
        ready = local.start(_START_TIMEOUT_S)
        with Client(ready.address) as client:
            model = client.model()
        record.add(start_s=time.perf_counter() - begin_s)
        service = Service(
            transport=Transport(target=ready.address), admin=Transport(target=ready.admin_address), model=model
        )
        yield service, ready.pid
    finally:
        local.stop()


@asynccontextmanager
async def bench_of(
    found: tuple[Service, int], scale: Scale, shape: str, card: str, rates: Rates, record: PartRecord
) -> AsyncIterator[Bench]:
    """A bench over a running service; notes what the service says of itself."""
    service, pid = found
    async with Session(service) as session:
        info = await session.server_info()
        if info is not None:
            record.add(
                service={
                    "attention": info.attention_backend,
                    "linear": info.linear_backend,
                    "versions": dict(info.versions),
                    "settings": dict(info.settings),
                    "device": info.device,
                }
            )
        yield Bench(session, pid, scale, shape, card, rates, record)


async def small_model(found: tuple[Service, int], scale: Scale, card: str, rates: Rates, record: PartRecord) -> None:
    """Everything that is measured on the small model."""
    async with bench_of(found, scale, scale.small_shape, card, rates, record) as bench:
        await bench.measure(
            {
                "workload": bench.workload,
                "one stream": lambda: bench.decode(scale.one_stream),
                "prefill": bench.prefill,
                "steady": bench.steady,
                "restart": bench.restart,
            }
        )


async def large_model(found: tuple[Service, int], scale: Scale, card: str, rates: Rates, record: PartRecord) -> None:
    """What is measured on the large one."""
    async with bench_of(found, scale, scale.large_shape, card, rates, record) as bench:
        await bench.measure({"streams": lambda: bench.decode(scale.large_case)})


async def peer_workload(found: tuple[Service, int], scale: Scale, card: str, rates: Rates, record: PartRecord) -> None:
    """What the peer is compared on, alone."""
    async with bench_of(found, scale, scale.small_shape, card, rates, record) as bench:
        await bench.measure({"peer workload": bench.peer_workload})
