"""What metrics cost: `python tests/benchmarks/metrics_cost.py [--streams N] [--rounds N] [--seconds S]`.

Two services without a model, one with a metrics listener and one without, are loaded in turns by the same clients, a
process of their own, while a scraper asks the first for its metrics every second. Prints the throughput of each round,
the service's processor time for a thousand tokens, the medians of the rounds' ratios, and how far the same service was
from its own median, which is what the ratios can tell.

`--model smollm2-135m --device cpu` measures with a model; then what is left of 1% is below what a machine can tell.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import grpc
import psutil
from support.service import Service, serve, stream_request

from pagewire.v1 import inference_pb2_grpc

_MAX_TOKENS = 200
_LIMIT_S = 120.0
_BOUND = 0.99


class Round(NamedTuple):
    """One load of one service."""

    tokens_per_s: float
    processor_ms: float
    """Of all of the service's processes, for a thousand tokens."""


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
    command = [sys.executable, __file__, "--be-clients", service.address, f"--streams={num_streams}"]
    done = subprocess.run([*command, f"--seconds={seconds}"], capture_output=True, text=True, check=True)
    num_tokens, took_s = map(float, done.stdout.split())
    return Round(num_tokens / took_s, (processor_s(service) - before_s) * 1e6 / num_tokens)


@contextmanager
def scraped(url: str, interval_s: float) -> Iterator[list[int]]:
    """Ask every so often, as Prometheus does; yields the lengths of the answers."""
    lengths: list[int] = []
    is_over = threading.Event()

    def scrape() -> None:
        while not is_over.wait(interval_s):
            with urllib.request.urlopen(url, timeout=_LIMIT_S) as response:
                lengths.append(len(response.read()))

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield lengths
    finally:
        is_over.set()
        thread.join()


def main() -> int:
    """Prints the table; 1 where metrics cost more than a hundredth of the throughput."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--model", default="random:tiny")
    parser.add_argument("--device", default="sim")
    parser.add_argument("--be-clients", metavar="ADDRESS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.be_clients:
        print(*asyncio.run(be_clients(arguments.be_clients, arguments.streams, arguments.seconds)))
        return 0
    settings = {"device": arguments.device, "max_num_seqs": arguments.streams, "max_model_len": 1024}
    rounds: dict[bool, list[Round]] = {False: [], True: []}
    with (
        serve(arguments.model, **settings) as without,
        serve(arguments.model, metrics_listen="127.0.0.1:0", metrics_names="vllm", **settings) as with_them,
    ):
        services = {False: without, True: with_them}
        for service in services.values():
            load(service, arguments.streams, 2.0)  # warms up
        with scraped(with_them.said["metrics_url"], 1.0) as lengths:
            for number in range(arguments.rounds):
                for is_measured in (False, True) if number % 2 else (True, False):
                    found = load(services[is_measured], arguments.streams, arguments.seconds)
                    rounds[is_measured].append(found)
                off, on = rounds[False][-1], rounds[True][-1]
                print(
                    f"round {number}: {off.tokens_per_s:,.0f} tokens/s without, {on.tokens_per_s:,.0f} with; "
                    f"{off.processor_ms:.1f} and {on.processor_ms:.1f} ms of processors for 1,000 tokens",
                    flush=True,
                )
    pairs = list(zip(rounds[False], rounds[True], strict=True))
    speed = statistics.median(on.tokens_per_s / off.tokens_per_s for off, on in pairs)
    cost = statistics.median(on.processor_ms / off.processor_ms for off, on in pairs)
    own = [each.tokens_per_s for each in rounds[False]]
    least, most = (extreme(own) / statistics.median(own) for extreme in (min, max))
    print(f"scrapes: {len(lengths)} of {statistics.mean(lengths):,.0f} bytes")
    print(f"throughput with over without: {speed:.4f}   ≥ {_BOUND}{'' if speed >= _BOUND else '   DOES NOT HOLD'}")
    print(f"processor time for a token, with over without: {cost:.4f}")
    print(f"rounds without over their median: {least:.3f} to {most:.3f}")
    return 0 if speed >= _BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
