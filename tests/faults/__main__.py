"""Faults under load, and what the streams make of them: `bash tests/run.sh faults`.

    bash tests/run.sh faults                           every row, ten moments each: about an hour on two cores
    bash tests/run.sh faults --moments 2               the same with two
    bash tests/run.sh faults --only "SIGKILL of the worker" --dtype bfloat16
    bash tests/run.sh faults --soak 1800               random faults every 20 s for half an hour, and nothing else

64 streams of every class run through the client on a small random Qwen3, recorded without faults first. Each row
strikes at random moments; whatever a client has in the end must be what was recorded, without an error, and no pause
may be longer than its bound. Prints each row as it is done, then a table. Exits with 1 where a row does not hold.
"""

import argparse
import contextlib
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
from faults.load import CLASSES, Answer, Asked, Read, read_all, requests, small_qwen3
from faults.strikes import LONGEST_PAUSE_S, Fault, at, every, five_in_a_row, killing, rank_1, stopping
from support.service import Service, gone, serve, stream_request

DTYPES = ("float32", "bfloat16")
NUM_STREAMS = 64
MAX_TOKENS = 80
SOAK_PAUSE_S = 8.0
START_LIMIT_S = 300.0
ONE_RANK = (
    "SIGKILL of the worker",
    "SIGKILL of the engine",
    "SIGKILL of both",
    "SIGKILL of the frontend",
    "five SIGKILLs in a row",
    "SIGSTOP of the worker",
    "100 preemptions",
    "SIGTERM",
    "a frontend killed while draining",
)
Expected = dict[Asked, Answer]


@dataclass
class Row:
    """What is known of one fault in one type of numbers."""

    name: str
    dtype: str
    bound_s: float
    moments: int = 0
    equal: int = 0
    total: int = 0
    errors: int = 0
    longest_s: float = 0.0
    p99_s: float = 0.0
    told: str = ""
    failed: bool = False

    def add(self, read: Read, expected: Expected, told: list[str]) -> None:
        self.moments += 1
        self.total += len(expected)
        self.equal += sum(read.answers.get(asked) == answer for asked, answer in expected.items())
        self.errors += len(read.errors)
        self.longest_s = max(self.longest_s, read.longest_s)
        self.p99_s = max(self.p99_s, read.p99_s)
        self.failed = self.failed or any(each.startswith("FAILED") for each in told)  # before it is cut short
        self.told = "; ".join(dict.fromkeys([*([self.told] if self.told else []), *told]))[:200]
        for asked, error in list(read.errors.items())[:2]:
            print(f"    {asked.kind} {asked.number}: {error}", flush=True)
        unlike = [f"{a.kind} {a.number}" for a, e in expected.items() if a in read.answers and read.answers[a] != e]
        if unlike:
            print(f"    not as recorded: {', '.join(unlike[:8])}", flush=True)

    @property
    def holds(self) -> bool:
        met = self.equal == self.total and not self.errors and self.p99_s <= self.bound_s
        return met and self.moments > 0 and not self.failed

    def cells(self) -> list[str]:
        pauses = f"{self.longest_s:.1f} | {self.p99_s:.1f} | {self.bound_s:g}"
        verdict = "holds" if self.holds else "**does not hold**"
        equal = f"{self.equal} of {self.total}"
        return [self.name, self.dtype, str(self.moments), equal, str(self.errors), pauses, self.told, verdict]


HEAD = ["fault", "numbers", "moments", "streams equal", "errors", "longest pause s", "p99 s", "bound s", "seen", ""]


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Faults:
    """The rows, each with a service of its own or one that several share."""

    def __init__(self, model: str, args: argparse.Namespace) -> None:
        self._model = model
        self._args = args
        self.rows: list[Row] = []

    def serve(self, dtype: str, **settings: Any) -> AbstractContextManager[Service]:
        given = {"max_num_seqs": 96, "max_model_len": 512, "max_n": 4, "listen": f"127.0.0.1:{free_port()}", **settings}
        model = given.pop("model", self._model)
        return serve(model=model, device="cpu", dtype=dtype, ready_limit_s=START_LIMIT_S, **given)

    def wanted(self, name: str) -> bool:
        return not self._args.only or any(part in name for part in self._args.only)

    @contextlib.contextmanager
    def row(self, name: str, dtype: str, bound_s: float = LONGEST_PAUSE_S) -> Iterator[Row]:
        """One that is printed when it is done, also where it breaks."""
        row = Row(name, dtype, bound_s)
        try:
            yield row
        except Exception as error:
            row.failed, row.told = True, f"FAILED: {type(error).__name__}: {error}"[:200]
        self.rows.append(row)
        print(line(row.cells()), flush=True)

    def part(self, name: str, run: Callable[[], None]) -> None:
        """Some rows. What breaks outside of one, a start or a recording, costs this part alone, and is a row too."""
        try:
            run()
        except Exception as error:
            with self.row(f"the part of {name}", ""):
                raise error

    def strike(self, fault: Fault, dtype: str, service: Service, expected: Expected) -> None:
        draw = random.Random(f"{self._args.seed} {fault.name} {dtype}")
        total = sum(len(output.tokens) for answer in expected.values() for output in answer[2])  # type: ignore[attr-defined]
        with self.row(fault.name, dtype, fault.longest_pause_s) as row:
            for _ in range(self._args.moments):
                told: list[str] = []
                read = read_all(service.address, list(expected), at(fault, service, total, draw, told))
                row.add(read, expected, told)

    def one_rank(self, dtype: str) -> None:
        """Lines of one worker process."""
        with self.serve(dtype) as service:
            asked = requests(list(CLASSES), NUM_STREAMS, MAX_TOKENS)
            recorded = read_all(service.address, asked)
            assert not recorded.errors, recorded.errors
            expected = recorded.answers
            slowest_s = max(recorded.longest_s, 0.1)
            for fault in (
                Fault("SIGKILL of the worker", killing("worker")),
                Fault("SIGKILL of the engine", killing("engine")),
                Fault("SIGKILL of both", killing("worker", "engine")),
                Fault("SIGKILL of the frontend", killing("frontend")),
                Fault("five SIGKILLs in a row", five_in_a_row, latest=0.3),
                Fault("SIGSTOP of the worker", stopping(slowest_s), 3 * slowest_s + 2 + 1 + LONGEST_PAUSE_S),
            ):
                if self.wanted(fault.name):
                    self.strike(fault, dtype, service, expected)
        if self.wanted("100 preemptions"):
            self.preemptions(dtype, expected)
        if self.wanted("SIGTERM") or self.wanted("a frontend killed while draining"):
            self.sigterm(dtype, expected)

    def preemptions(self, dtype: str, expected: Expected) -> None:
        """In memory for a few of the sequences."""
        token_bytes = 4 * 2 * 4 * 32 * (4 if dtype == "float32" else 2)
        with (
            self.row("100 preemptions", dtype, START_LIMIT_S) as row,
            self.serve(dtype, kv_cache_bytes=token_bytes * 1024, block_size=16) as service,
        ):
            while (load := service.load()).preemptions < 100 and row.moments < 20:
                row.add(read_all(service.address, list(expected)), expected, [])
            row.told = f"{service.load().preemptions} preemptions"
            row.failed = load.preemptions < 100

    def sigterm(self, dtype: str, expected: Expected) -> None:
        """Streams that run are finished; the status is 0, and 1 where a frontend took streams along."""
        for name, loses in (("SIGTERM", False), ("a frontend killed while draining", True)):
            if not self.wanted(name):
                continue
            with self.row(name, dtype) as row, self.serve(dtype, drain_grace_s=120) as service:

                def during(course: Any, service: Service = service, loses: bool = loses) -> None:
                    course.wait_until_begun(NUM_STREAMS)
                    service.process.send_signal(signal.SIGTERM)
                    if loses:
                        time.sleep(0.5)  # so that it has heard
                        service.children()["frontend"].kill()

                # Long ones where some must be lost, or all have ended before the frontend is killed.
                asked = requests(list(CLASSES), NUM_STREAMS, 4 * MAX_TOKENS) if loses else list(expected)
                read = read_all(service.address, asked, during)
                status = service.process.wait(60)
                if loses:
                    row.moments, row.told = 1, f"exit status {status}, {len(read.errors)} streams told so"
                    row.failed = status == 0
                else:
                    row.add(read, expected, [f"exit status {status}"])
                    row.failed = status != 0

    def two_ranks(self) -> None:
        with self.serve("float32", tensor_parallel_size=2) as service:
            asked = requests(list(CLASSES), NUM_STREAMS, MAX_TOKENS)
            recorded = read_all(service.address, asked)
            assert not recorded.errors, recorded.errors
            self.strike(Fault("SIGKILL of one rank of two", rank_1), "float32", service, recorded.answers)

    def default_model(self) -> None:
        """SmolLM2 in its default type: 64 greedy and 64 seeded streams, over kills and preemptions."""
        asked = requests(["greedy", "seeded"], 2 * NUM_STREAMS, MAX_TOKENS)
        with self.serve("auto", model="smollm2-135m", max_num_seqs=128) as service:
            recorded = read_all(service.address, asked)
            assert not recorded.errors, recorded.errors
            fault = Fault("the default model: SIGKILL of the worker", killing("worker"))
            self.strike(fault, "auto", service, recorded.answers)
        with (
            self.row("the default model: preemptions", "auto", START_LIMIT_S) as row,
            self.serve("auto", model="smollm2-135m", max_num_seqs=128, kv_cache_bytes=23_040 * 2048) as service,
        ):
            row.add(read_all(service.address, asked), recorded.answers, [])
            row.told = f"{service.load().preemptions} preemptions"
            row.failed = not service.load().preemptions

    def supervisor(self) -> None:
        with self.row("SIGKILL of the supervisor", "", 5.0) as row, tempfile.TemporaryDirectory() as folder:
            settings = {"listen": f"127.0.0.1:{free_port()}", "runtime_dir": Path(folder, "run")}
            for moment in range(self._args.moments):
                with self.serve("float32", **settings) as service:
                    call = service.inference.StreamGenerate(stream_request([1, 2, 3], stopping={"max_tokens": 300}))
                    next(call)
                    children = psutil.Process(service.process.pid).children(recursive=True)
                    service.process.kill()
                    left = gone(children, 5)
                    row.moments, row.total, row.equal = moment + 1, moment + 1, row.equal + (not left)
                    row.told = f"{len(left)} of {len(children)} processes left after 5 s; the next one served"

    def cancels(self, count: int) -> None:
        """At random phases; afterwards everything is as it was."""
        with self.row(f"{count} cancels", "float32") as row, self.serve("float32", stream_buffer_tokens=64) as service:
            draw = random.Random(self._args.seed)

            def batch(size: int) -> None:
                calls = []
                for _ in range(size):
                    request = stream_request(
                        [draw.randrange(5, 40_000) for _ in range(16)], stopping={"max_tokens": 60}
                    )
                    calls.append(service.inference.StreamGenerate(request))
                    if draw.random() < 0.5:
                        calls.pop(draw.randrange(len(calls))).cancel()
                for call in calls:
                    if draw.random() < 0.7:
                        next(call, None)
                    call.cancel()

            def used() -> dict[str, tuple[int, int]]:
                service.wait_for_load(lambda load: not load.running_sequences and not load.waiting_sequences)
                return {
                    role: (child.num_fds(), child.memory_info().rss >> 20) for role, child in service.children().items()
                }

            for _ in range(10):
                batch(50)
            before, done = used(), 0
            while done < count:
                batch(50)
                done += 50
            after = used()
            load = service.load()
            grown = {role: (after[role][0] - before[role][0], after[role][1] - before[role][1]) for role in before}
            row.moments, row.total, row.equal = done, 1, int(load.used_blocks == 0)
            row.told = "; ".join(f"{role} {fds:+d} descriptors {mib:+d} MiB" for role, (fds, mib) in grown.items())
            row.failed = any(fds > 4 or mib > 40 for fds, mib in grown.values())

    def soak(self, seconds: float) -> None:
        for dtype in self._args.dtype:
            with self.row(f"a soak of {seconds:g} s", dtype, SOAK_PAUSE_S) as row, self.serve(dtype) as service:
                asked = requests(list(CLASSES), NUM_STREAMS * 2 // 3, MAX_TOKENS)
                recorded = read_all(service.address, asked)
                assert not recorded.errors, recorded.errors
                expected = recorded.answers
                draw, over, told = random.Random(self._args.seed), threading.Event(), list[str]()
                striking = threading.Thread(target=every, args=(20.0, service, draw, over, told))
                striking.start()
                deadline_s = time.monotonic() + seconds
                try:
                    while time.monotonic() < deadline_s:
                        row.add(read_all(service.address, asked), expected, [])
                finally:
                    over.set()
                    striking.join()
                row.told = ", ".join(f"{told.count(each)} × {each}" for each in dict.fromkeys(told))
                unstruck = not told or any(each.startswith("FAILED") for each in told)
                row.failed = unstruck or service.process.poll() is not None or row.longest_s > SOAK_PAUSE_S


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests/run.sh faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=10, help="of each fault")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows whose names have one of these in them")
    parser.add_argument("--cancels", type=int, default=20_000)
    parser.add_argument(
        "--soak", type=float, metavar="S", help="random faults every 20 s for so long, and nothing else"
    )
    args = parser.parse_args()
    with small_qwen3() as model:
        faults = Faults(str(model), args)
        print(line(HEAD), flush=True)
        print(line(["---"] * len(HEAD)), flush=True)
        if args.soak:
            faults.soak(args.soak)
        else:
            parts: list[tuple[tuple[str, ...], Callable[[], None]]] = [
                *[(ONE_RANK, lambda dtype=dtype: faults.one_rank(dtype)) for dtype in args.dtype],
                (("SIGKILL of one rank of two",), faults.two_ranks),
                (("the default model: SIGKILL of the worker", "the default model: preemptions"), faults.default_model),
                (("SIGKILL of the supervisor",), faults.supervisor),
                ((f"{args.cancels} cancels",), lambda: faults.cancels(args.cancels)),
            ]
            for names, run in parts:
                if any(faults.wanted(name) for name in names):
                    faults.part(names[0], run)
    broken = [row for row in faults.rows if not row.holds]
    print(f"{len(faults.rows) - len(broken)} of {len(faults.rows)} rows hold")
    return 1 if broken or not faults.rows else 0


if __name__ == "__main__":
    sys.exit(main())
