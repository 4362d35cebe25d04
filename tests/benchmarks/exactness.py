"""What exactness costs: this checkout against another one, in turns.

    git worktree add --detach BEFORE 1dc998a     # the last whose prompts were not added up as decoding rows are
    …                                            # an environment for it, with its native library
    python tests/benchmarks/exactness.py BEFORE/.venv/bin/python

Both serve one random shape. A round asks each for one new prompt, or lets it decode some streams at once, from prompts
that its cache holds. Counted are the device's time of a step, from the engine's own counters, and the processor time of
the worker, which says more where the machine has other work. A ratio is this checkout's time over the other's in the
same round; it is printed as the rounds go. Exits with 1 where a median ratio of processor times is above `--bound`.
"""

import argparse
import random
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.processes import Family
from support.service import Service, serve, stream_request

from pagewire.client.bench import environment
from pagewire.v1 import admin_pb2

LIMIT_S = 600.0
BEFORE, NOW = "before", "now"
MAX_ID = 1000
MAX_MODEL_LEN = 4096
SPARE_STEPS = 128
"""For streams that run on until they are cancelled: the first has begun some steps before the last."""


@dataclass(frozen=True)
class Times:
    """Of a step, in milliseconds."""

    device: float
    processor: float

    def over(self, other: "Times") -> "Times":
        """Ratios."""
        return Times(self.device / other.device, self.processor / other.processor)


class Side:
    """One checkout's service."""

    def __init__(self, service: Service, seed: int) -> None:
        self._service = service
        self._draw = random.Random(seed)
        family = Family(service.process.pid).members()
        self._workers = [process for process in family if "pagewire.worker" in process.cmdline()]

    def prompt(self, length: int) -> list[int]:
        return [self._draw.randrange(MAX_ID) for _ in range(length)]

    def prefill(self, ids: list[int]) -> Times:
        """The prompt and one token."""
        used_s, before = self._processor_s(), self._service.load()
        for _ in self._stream(ids, 1):
            pass
        used_s = self._processor_s() - used_s
        after = self._service.wait_for_load(
            lambda load: load.steps > before.steps and not load.running_sequences + load.waiting_sequences
        )
        return Times((after.worker_busy_us - before.worker_busy_us) / 1000, used_s * 1000)

    def decode(self, prompts: list[list[int]], num_steps: int) -> Times:
        """A step, of `num_steps` or so in which all decode."""
        calls = [self._stream(ids, num_steps + SPARE_STEPS) for ids in prompts]
        for call in calls:
            while not next(call).HasField("delta"):
                pass
        begin, used_s = self._next_load(), self._processor_s()
        num_seen = 0
        while num_seen < num_steps:
            num_seen += len(next(calls[-1]).delta.tokens)
        end, used_s = self._next_load(), self._processor_s() - used_s
        for call in calls:
            call.cancel()
        self._service.wait_for_load(lambda load: not load.running_sequences + load.waiting_sequences)
        count = end.steps - begin.steps
        return Times((end.worker_busy_us - begin.worker_busy_us) / 1000 / count, used_s * 1000 / count)

    def _stream(self, ids: list[int], max_tokens: int) -> Any:
        request = stream_request(ids, stopping={"max_tokens": max_tokens, "ignore_eos": True})
        return self._service.inference.StreamGenerate(request, timeout=LIMIT_S)

    def _next_load(self) -> admin_pb2.Load:
        """The engine reports now and then: the first report of more steps than the last one."""
        last = self._service.load()
        return self._service.wait_for_load(lambda load: load.steps > last.steps)

    def _processor_s(self) -> float:
        return float(sum(times.user + times.system for times in (worker.cpu_times() for worker in self._workers)))


def measure(args: argparse.Namespace, dtype: str) -> bool:
    """Prints the rounds of each case; whether all ratios are within the bound."""
    settings = {
        "device": "cpu",
        "dtype": dtype,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_batched_tokens": MAX_MODEL_LEN,
        "max_num_seqs": max(args.streams, default=1),
        "kv_cache_bytes": args.kv_cache_bytes,
        "load_interval_s": 0.05,
    }
    with ExitStack() as stack:
        sides = {
            name: Side(stack.enter_context(serve(args.model, LIMIT_S, python=python, **settings)), seed)
            for seed, (name, python) in enumerate({BEFORE: args.before_python, NOW: sys.executable}.items())
        }
        for side in sides.values():
            side.prefill(side.prompt(64))  # warms up
        met = True
        if args.prompt_tokens:
            what = f"{dtype} prompt of {args.prompt_tokens}"
            met = compare(what, sides, args, lambda side: side.prefill(side.prompt(args.prompt_tokens)))
        for count in args.streams:
            prompts = [[stream + 1, *range(1, args.context)] for stream in range(count)]
            for side in sides.values():
                side.decode(prompts, 1)  # now its cache holds them
            what = f"{dtype} step of {count} at {args.context}"
            met = compare(what, sides, args, partial(Side.decode, prompts=prompts, num_steps=args.steps)) and met
    return met


def compare(what: str, sides: dict[str, Side], args: argparse.Namespace, step: Callable[[Side], Times]) -> bool:
    """Prints the rounds and a line of medians; whether the median ratio is within the bound."""
    rounds: list[dict[str, Times]] = []
    for number in range(args.rounds):
        order = sorted(sides, reverse=number % 2 == 0)
        rounds.append({name: step(sides[name]) for name in order})
        print(f"{what}, round {number}: {line_of(rounds[-1:])}", flush=True)
    print(f"{what}: {line_of(rounds)}", flush=True)
    return statistics.median(each[NOW].over(each[BEFORE]).processor for each in rounds) <= args.bound


def line_of(rounds: list[dict[str, Times]]) -> str:
    """Medians of the rounds, and the least and the most of their ratios."""
    parts = []
    for kind in ("device", "processor"):
        before, now = (statistics.median(getattr(each[name], kind) for each in rounds) for name in (BEFORE, NOW))
        ratios = sorted(getattr(each[NOW].over(each[BEFORE]), kind) for each in rounds)
        spread = f" ({ratios[0]:.3f} to {ratios[-1]:.3f})" if len(ratios) > 1 else ""
        parts.append(f"{kind} {before:.1f} → {now:.1f} ms, ratio {statistics.median(ratios):.3f}{spread}")
    return "; ".join(parts)


def main() -> int:
    """1 where a ratio is above the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before_python", metavar="PYTHON", help="of the other checkout's environment")
    parser.add_argument("--model", default="random:qwen3-0.6b")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=7, help="that count (7)")
    parser.add_argument("--prompt-tokens", type=int, default=1024, help="0: no prompt is measured (1024)")
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 32], help="that decode at once (1 32)")
    parser.add_argument("--context", type=int, default=128, help="of a stream when it begins (128)")
    parser.add_argument("--steps", type=int, default=16, help="of decoding a round (16)")
    parser.add_argument("--kv-cache-bytes", default="2GiB", help="of each service (2GiB)")
    parser.add_argument("--bound", type=float, default=1.03, help="of a ratio (1.03)")
    args = parser.parse_args()
    print(environment.hardware()["cpu"])
    met = [measure(args, dtype) for dtype in args.dtypes]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
