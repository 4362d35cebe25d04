"""What it costs to be seen: load reports, the request log and traces, each against a service without any, in turns.

    python tests/benchmarks/observing.py
    python tests/benchmarks/observing.py --before BEFORE/.venv/bin/python    # all off, against another checkout too

All services run at once, on the sim device, and idle but for the one whose turn it is. A turn is a closed loop of
streams. Counted is the processor time that all of a service's processes take for it, which says more than the time
that it takes where the machine has other work; the collector of traces is in this process and is not counted. A ratio
is a service's over that of `off` in the same round; `off again` is the same once more, and shows what of a ratio is
chance. Exits with 1 where a median ratio is above its bound.
"""

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.processes import Family
from support.otlp_collector import Collector, collecting
from support.service import serve, stream_request

from pagewire.client.bench import environment

METHOD = "/pagewire.v1.InferenceService/StreamGenerate"
LIMIT_S = 600.0
OFF = "off"
SILENT = {"orca_load_reports": False, "log_level": "warning"}
BOUNDS = {"load reports": 1.01, "traces": 1.03, "all off, of the other checkout": 1.01}
"""Of a median ratio."""


@dataclass(frozen=True)
class Variant:
    """A service that is seen in one way."""

    name: str
    settings: dict[str, object]
    python: str = sys.executable


@dataclass(frozen=True)
class Load:
    """What each turn asks of a service."""

    requests: int
    streams: int
    tokens: int


class Side:
    """A variant's service."""

    def __init__(self, address: str, pid: int) -> None:
        self._address = address
        self._family = Family(pid)

    def turn(self, load: Load) -> float:
        """Milliseconds of processor time a request."""
        before_ms = self._processor_ms()
        asyncio.run(self._ask(load))
        self._family.wait_until_idle(LIMIT_S)
        return (self._processor_ms() - before_ms) / load.requests

    def _processor_ms(self) -> float:
        """Of all threads that live, to the nanosecond, where `cpu_times` counts in hundredths of a second."""
        used_ns = 0
        for member in self._family.members():
            for task in Path(f"/proc/{member.pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):
                    used_ns += int(task.read_text().split()[0])
        return used_ns / 1e6

    async def _ask(self, load: Load) -> None:
        frame = stream_request([1, 2, 3], stopping={"max_tokens": load.tokens}).SerializeToString()
        left = iter(range(load.requests))
        async with grpc.aio.insecure_channel(self._address) as channel:
            call: Any = channel.unary_stream(METHOD)

            async def client() -> None:
                for _ in left:
                    async for _message in call(frame, timeout=LIMIT_S):
                        pass

            await asyncio.gather(*[client() for _ in range(load.streams)])


def variants(collector: Collector, before: str | None) -> Iterator[Variant]:
    """The one without anything first."""
    yield Variant(OFF, SILENT)
    yield Variant("off again", SILENT)
    yield Variant("load reports", SILENT | {"orca_load_reports": True})
    yield Variant("request log", SILENT | {"log_level": "info"})
    yield Variant("traces", SILENT | {"otlp_endpoint": collector.endpoint})
    if before is not None:
        yield Variant("the other checkout", {"log_level": "warning"}, before)


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """Prints the rounds; milliseconds of each, by variant."""
    load = Load(args.requests, args.streams, args.tokens)
    found: dict[str, list[float]] = {}
    with collecting() as collector, ExitStack() as stack:
        sides: dict[str, Side] = {}
        for variant in variants(collector, args.before):
            service = stack.enter_context(
                serve(
                    python=variant.python,
                    stderr=subprocess.DEVNULL,
                    max_num_seqs=args.streams,
                    sim_step_us=args.step_us,
                    **variant.settings,
                )
            )
            sides[variant.name] = Side(service.address, service.process.pid)
            sides[variant.name].turn(load)  # warms up
        names = list(sides)
        for number in range(args.rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                found.setdefault(name, []).append(sides[name].turn(load))
            collector.requests.clear()
            print(f"round {number}: {', '.join(f'{name} {found[name][-1]:.3f} ms' for name in names)}", flush=True)
    return found


def judge(found: dict[str, list[float]]) -> bool:
    """Prints a line for each; whether all are within their bounds."""
    if other := found.pop("the other checkout", None):
        ratios = {"all off, of the other checkout": [now / then for now, then in zip(found[OFF], other, strict=True)]}
    else:
        ratios = {}
    for name, times in found.items():
        if name != OFF:
            ratios[name] = [now / off for now, off in zip(times, found[OFF], strict=True)]
    met = True
    for name, each in ratios.items():
        median, bound = statistics.median(each), BOUNDS.get(name)
        met = met and (bound is None or median <= bound)
        least = f", at most {bound:.2f}" if bound else ""
        print(f"{name}: {median:.3f} ({min(each):.3f} to {max(each):.3f}){least}")
    return met


def main() -> int:
    """1 where something costs more than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="PYTHON", help="of another checkout's environment")
    parser.add_argument("--rounds", type=int, default=24, help="that count (24)")
    parser.add_argument("--requests", type=int, default=64, help="of a turn (64)")
    parser.add_argument("--streams", type=int, default=32, help="at once (32)")
    parser.add_argument("--tokens", type=int, default=512, help="of a stream (512)")
    parser.add_argument("--step-us", type=int, default=0, help="of the sim device's step (0)")
    args = parser.parse_args()
    print(environment.hardware()["cpu"])
    return 0 if judge(measure(args)) else 1


if __name__ == "__main__":
    sys.exit(main())
