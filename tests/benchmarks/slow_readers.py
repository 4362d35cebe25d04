"""What slow readers cost others: `python tests/benchmarks/slow_readers.py [--streams N] [--rounds N] [--model M …]`.

One client that never reads and ten that read `--rate` tokens a second (40) ask beside streams that are read as they
come, in turns with the same streams without them. Prints the times between two messages of those streams, p50 and p99,
and the ratio of the p99s; beside them, how often a second sequences of slow readers were paused anew. The slow clients
are a process of their own.

Without `--model`, a device that runs none and takes 10 ms a step. With one, let the rate be below what a stream gets.
"""

import argparse
import asyncio
import itertools
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from collections.abc import Iterator

import grpc
import numpy as np
from support.service import Service, serve, stream_request

from pagewire.v1 import inference_pb2_grpc

_NUM_SLOW = 10
_MAX_TOKENS = 3000
_WINDOW = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
_LIMIT_S = 120.0


def request(seed: int, max_tokens: int) -> Any:
    stopping = {"max_tokens": max_tokens, "ignore_eos": True}
    return stream_request([5 + seed % 90] * 20, stopping=stopping, sampling={"seed": seed})


async def read_slowly(address: str, rate: float, seed: int) -> None:
    """For ever, a stream after the other, over a connection of its own."""
    async with grpc.aio.insecure_channel(address, options=[*_WINDOW, ("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        for number in itertools.count():
            async for message in stub.StreamGenerate(request(seed + 100 * number, _MAX_TOKENS)):
                await asyncio.sleep(len(message.delta.tokens) / rate)


async def never_read(address: str) -> None:
    """For ever."""
    async with grpc.aio.insecure_channel(address, options=[*_WINDOW, ("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = inference_pb2_grpc.InferenceServiceStub(channel).StreamGenerate(request(99, _MAX_TOKENS))
        await call.read()
        await asyncio.Event().wait()


async def be_slow(address: str, rate: float) -> None:
    """What the process of slow clients does."""
    await asyncio.gather(never_read(address), *[read_slowly(address, rate, seed) for seed in range(_NUM_SLOW)])


@contextmanager
def slow_clients(address: str, rate: float) -> Iterator[None]:
    """While they are there."""
    process = subprocess.Popen([sys.executable, __file__, "--be-slow", address, f"--rate={rate}"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def gaps_of(stub: inference_pb2_grpc.InferenceServiceStub, seed: int, until_s: float) -> list[float]:
    """Seconds between two messages of streams, one after the other."""
    gaps: list[float] = []
    while time.perf_counter() < until_s:
        last_s: float | None = None
        async for message in stub.StreamGenerate(request(seed, 200), timeout=_LIMIT_S):
            now_s = time.perf_counter()
            if message.HasField("delta"):
                if last_s is not None:
                    gaps.append(now_s - last_s)
                last_s = now_s
    return gaps


async def measure(address: str, num_streams: int, duration_s: float) -> list[float]:
    """Of all streams together."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        until_s = time.perf_counter() + duration_s
        found = await asyncio.gather(*[gaps_of(stub, 1000 + i, until_s) for i in range(num_streams)])
    return [gap for gaps in found for gap in gaps]


def wait_until_idle(service: Service) -> None:
    """Nothing of the side before is left."""
    service.wait_for_load(lambda load: not load.running_sequences + load.waiting_sequences + load.paused_sequences)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=40.0)
    parser.add_argument("--model")
    parser.add_argument("--be-slow", metavar="ADDRESS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.be_slow:
        asyncio.run(be_slow(arguments.be_slow, arguments.rate))
        return
    device: dict[str, object] = {"sim_step_us": 10_000, "stream_buffer_tokens": 256}
    if arguments.model is not None:
        device = {"device": "cpu", "stream_buffer_tokens": 64}
    model = arguments.model or "random:qwen3-0.6b"
    pooled: dict[bool, list[float]] = {False: [], True: []}
    ratios: list[float] = []
    num_pauses = 0
    with serve(model, max_model_len=4096, slow_reader_timeout_s=600, **device) as service:
        asyncio.run(measure(service.address, arguments.streams, 3.0))  # warms up
        for number in range(arguments.rounds):
            p99 = {}
            for are_there in (False, True) if number % 2 else (True, False):
                wait_until_idle(service)
                if are_there:
                    with slow_clients(service.address, arguments.rate):
                        service.wait_for_load(lambda load: load.paused_sequences == _NUM_SLOW + 1)
                        num_pauses -= service.load().preemptions
                        gaps = asyncio.run(measure(service.address, arguments.streams, arguments.seconds))
                        num_pauses += service.load().preemptions
                else:
                    gaps = asyncio.run(measure(service.address, arguments.streams, arguments.seconds))
                pooled[are_there] += gaps
                p99[are_there] = np.percentile(gaps, 99)
            ratios.append(p99[True] / p99[False])
            print(f"round {number}: p99 {p99[False] * 1e3:.1f} ms without, {p99[True] * 1e3:.1f} ms with slow readers")
    for are_there, name in ((False, "without"), (True, "with")):
        p50, p99_s = np.percentile(pooled[are_there], [50, 99]) * 1e3
        print(f"{name:8} p50 {p50:6.2f} ms   p99 {p99_s:6.2f} ms   of {len(pooled[are_there]):,} times")
    print(f"pauses a second: {num_pauses / (arguments.rounds * arguments.seconds):.1f}")
    ratio = np.percentile(pooled[True], 99) / np.percentile(pooled[False], 99)
    print(f"ratio of p99: {ratio:.3f} pooled, {statistics.median(ratios):.3f} the median of rounds")


if __name__ == "__main__":
    main()
