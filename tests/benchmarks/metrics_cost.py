"""What metrics cost: `python tests/benchmarks/metrics_cost.py [--streams N] [--rounds N] [--seconds S]`.

First the parts, each timed by itself, in turns with the same work uncounted: a step's tokens in a frontend, a step in
the engine, the reports of a second, a scrape. Together they are the processor time that metrics take at the rate of the
whole, and with what the server itself took their share of it, which is held to 1%.

Then the whole: two services without a model, one with a metrics listener, which is scraped every second, and one
without, loaded in turns by clients that are a process of their own. Prints each round's throughput, the median of the
ratios, and how far the rounds of one service lie apart, which is what the ratio can tell.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import grpc
import psutil
from support.service import Service, serve, stream_request

from pagewire.scheduler_svc.engine.meter import EngineMeter
from pagewire.scheduler_svc.frontend.streams.measures import FrontendMeasures
from pagewire.scheduler_svc.frontend.streams.output import Output
from pagewire.scheduler_svc.frontend.streams.sequences import SequenceTable
from pagewire.scheduler_svc.frontend.streams.stream import RequestStream, StreamSettings
from pagewire.scheduler_svc.metrics.exposition import exposed
from pagewire.scheduler_svc.metrics.families import pagewire_families
from pagewire.scheduler_svc.metrics.totals import ServerTotals
from pagewire.scheduler_svc.metrics.vllm_names import vllm_families
from pagewire.v1 import inference_pb2_grpc
from pagewire.wire.codec import JsonCodec
from pagewire.wire.columns import pack
from pagewire.wire.control import FromChild
from pagewire.wire.measures import EngineMeasured, FrontendMeasured
from pagewire.wire.requests import EngineState, Load, Submit, TokenBatch
from pagewire.wire.sampling import SamplingParams

_MAX_TOKENS = 200
_LIMIT_S = 120.0
_BOUND = 0.01
_BATCHES = 400
_ENGINE_REPORTS_PER_S = 2.0
_FRONTEND_REPORTS_PER_S = 1.0
_SCRAPES_PER_S = 1.0
_LOAD = Load(EngineState.READY, 64, 0, 100, 50, 1000, 1, 1, 1, 0, 1, 1, 1, 0)


class Parts(NamedTuple):
    """Microseconds of a processor."""

    token_us: float
    step_us: float
    engine_report_us: float
    frontend_report_us: float
    scrape_us: float

    def of_a_second_us(self, tokens: float, steps: float) -> float:
        """At so many tokens and steps a second."""
        reports = _ENGINE_REPORTS_PER_S * self.engine_report_us + _FRONTEND_REPORTS_PER_S * self.frontend_report_us
        return tokens * self.token_us + steps * self.step_us + reports + _SCRAPES_PER_S * self.scrape_us


class Round(NamedTuple):
    """One load of one service."""

    tokens_per_s: float
    processor_us: float
    """Of all of the service's processes, for a token."""


# The parts


def median_us(work: Callable[[], object], times: int = 200) -> float:
    """Of one call."""
    took = []
    for _ in range(times):
        began_ns = time.thread_time_ns()
        work()
        took.append(time.thread_time_ns() - began_ns)
    return statistics.median(took) / 1000


def table_of(num_streams: int, measures: FrontendMeasures | None) -> tuple[SequenceTable, list[int]]:
    """Streams that want their ids, submitted; and their handles."""
    table = SequenceTable(lambda _: None, lambda _delay_s, _call: None, time.monotonic, 1000, measures)
    for _ in range(num_streams):
        submit = Submit(
            handle=table.new_handle(),
            request_id="r",
            prompt=pack([1]),
            generated=b"",
            sampling=SamplingParams(0.0, 0, 1.0, 0),
            max_tokens=10_000,
            stop_token_ids=[],
            ignore_eos=True,
            priority=0,
            salt=b"",
            max_queue_time_s=None,
        )
        settings = StreamSettings(
            request_id="r", seed=0, num_prompt_tokens=1, want_token_ids=True, want_text=False, reader=None
        )
        stream = RequestStream(settings, time.monotonic, table)
        stream.outputs.append(Output(0, submit, None))
        table.submit(stream)
    return table, list(table._open)


async def token_us(num_streams: int) -> float:
    """What counting adds to a token's way through a frontend."""
    tables = {is_counted: table_of(num_streams, FrontendMeasures(time.monotonic) if is_counted else None)
              for is_counted in (False, True)}  # fmt: skip
    took: dict[bool, list[int]] = {False: [], True: []}
    for number in range(_BATCHES):
        for is_counted in (False, True) if number % 2 else (True, False):
            table, handles = tables[is_counted]
            batch = TokenBatch([], pack(handles), pack([7] * num_streams), [])
            began_ns = time.thread_time_ns()
            table.apply(batch)
            took[is_counted].append(time.thread_time_ns() - began_ns)
    gains = [counted - plain for counted, plain in zip(took[True], took[False], strict=True)]
    return statistics.median(gains) / num_streams / 1000


def measure_parts(num_streams: int) -> Parts:
    """Every one."""
    codec: JsonCodec[FromChild] = JsonCodec(FromChild)
    meter, measures, totals = EngineMeter(), FrontendMeasures(time.monotonic), ServerTotals()
    families = [*pagewire_families("m", "1", "sim"), *vllm_families("m")]

    def step() -> None:
        meter.ledger.pass_time(time.monotonic())
        meter.ledger.take("", 1)
        meter.planned(64, 1e-4, 1e-4 + time.monotonic() * 0, 103)
        meter.answered(1000, 1e-3, time.monotonic() * 0)

    def told(report: EngineMeasured | FrontendMeasured) -> None:
        received = codec.decode(codec.encode_line(report))
        assert isinstance(received, EngineMeasured | FrontendMeasured)
        totals.measured(0, received)

    return Parts(
        token_us=asyncio.run(token_us(num_streams)),
        step_us=median_us(step, 20_000),
        engine_report_us=median_us(lambda: told(meter.report(_LOAD, 0, 32, time.monotonic()))),
        frontend_report_us=median_us(lambda: told(measures.report())),
        scrape_us=median_us(lambda: exposed(totals.snapshot(), families, open_metrics=True), 50),
    )


# The whole


async def stream_on(stub: inference_pb2_grpc.InferenceServiceStub, seed: int, until_s: float) -> int:
    """One stream after the other; returns the tokens that came."""
    num_tokens = 0
    stopping = {"max_tokens": _MAX_TOKENS, "ignore_eos": True}
    while (now_s := time.perf_counter()) < until_s:
        call = stub.StreamGenerate(
            stream_request([5 + seed % 90] * 20, stopping=stopping, sampling={"seed": seed}), timeout=_LIMIT_S
        )
        async for message in call:
            num_tokens += len(message.delta.tokens)
        seed += round(now_s)
    return num_tokens


async def be_clients(address: str, num_streams: int, seconds: float) -> tuple[int, float]:
    """What the process of clients does: tokens, and seconds."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        began_s = time.perf_counter()
        counts = await asyncio.gather(*[stream_on(stub, seed, began_s + seconds) for seed in range(num_streams)])
        return sum(counts), time.perf_counter() - began_s


def processor_s(service: Service) -> float:
    """Of the supervisor and all below it, so far."""
    supervisor = psutil.Process(service.process.pid)
    times = [process.cpu_times() for process in (supervisor, *supervisor.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def load(service: Service, num_streams: int, seconds: float) -> Round:
    """One round."""
    before_s = processor_s(service)
    command = [sys.executable, __file__, f"--be-clients={service.address}", f"--streams={num_streams}"]
    done = subprocess.run([*command, f"--seconds={seconds}"], stdout=subprocess.PIPE, text=True, check=True)
    num_tokens, took_s = map(float, done.stdout.split())
    return Round(num_tokens / took_s, (processor_s(service) - before_s) * 1e6 / num_tokens)


@contextmanager
def scraped(url: str, interval_s: float) -> Iterator[None]:
    """Ask every so often, as Prometheus does."""
    is_over = threading.Event()

    def scrape() -> None:
        while not is_over.wait(interval_s):
            with urllib.request.urlopen(url, timeout=_LIMIT_S) as response:
                response.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def measure_whole(num_streams: int, num_rounds: int, seconds: float) -> Round:
    """Prints the rounds; returns the median of those without metrics."""
    settings = {"max_num_seqs": num_streams, "max_model_len": 1024}
    pairs: list[tuple[Round, Round]] = []
    with (
        serve(**settings) as without,
        serve(metrics_listen="127.0.0.1:0", metrics_names="vllm", **settings) as with_them,
    ):
        for service in (without, with_them):
            load(service, num_streams, 2.0)  # warms up
        with scraped(with_them.said["metrics_url"], 1 / _SCRAPES_PER_S):
            for number in range(num_rounds):
                order = [without, with_them] if number % 2 else [with_them, without]
                found = {service: load(service, num_streams, seconds) for service in order}
                pairs.append((found[without], found[with_them]))
                off, on = pairs[-1]
                print(f"round {number}: {off.tokens_per_s:9,.0f} tokens/s without, {on.tokens_per_s:9,.0f} with",
                      flush=True)  # fmt: skip
    own = [off.tokens_per_s for off, _ in pairs]
    usual = Round(statistics.median(own), statistics.median(off.processor_us for off, _ in pairs))
    ratio = statistics.median(on.tokens_per_s / off.tokens_per_s for off, on in pairs)
    print(f"throughput with over without: {ratio:.3f}; rounds without over their median: "
          f"{min(own) / usual.tokens_per_s:.2f} to {max(own) / usual.tokens_per_s:.2f}")  # fmt: skip
    return usual


def main() -> int:
    """Prints the tables; 1 where metrics take more than a hundredth of the processor time that the service takes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--be-clients", metavar="ADDRESS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.be_clients:
        print(*asyncio.run(be_clients(arguments.be_clients, arguments.streams, arguments.seconds)))
        return 0
    parts = measure_parts(arguments.streams)
    print(f"a token: {parts.token_us * 1000:.0f} ns; a step: {parts.step_us:.1f} µs; a report of the engine "
          f"{parts.engine_report_us:.0f} µs, of a frontend {parts.frontend_report_us:.0f} µs, both sides; a scrape "
          f"{parts.scrape_us / 1000:.1f} ms")  # fmt: skip
    usual = measure_whole(arguments.streams, arguments.rounds, arguments.seconds)
    tokens = usual.tokens_per_s
    metrics_us = parts.of_a_second_us(tokens, tokens / arguments.streams)
    share = metrics_us / (tokens * usual.processor_us)
    verdict = "" if share <= _BOUND else "   DOES NOT HOLD"
    print(f"at {tokens:,.0f} tokens/s the service takes {tokens * usual.processor_us / 1000:,.0f} ms of processors a "
          f"second,")  # fmt: skip
    print(f"metrics {metrics_us / 1000:.1f} ms with a scrape a second: {share:.2%}   ≤ {_BOUND:.0%}{verdict}")
    return 0 if share <= _BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
