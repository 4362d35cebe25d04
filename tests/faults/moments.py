"""Rows of faults that strike at random moments of a load that was recorded without."""

import math
import random
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
from faults.bench import NUM_STREAMS, Bench, free_port
from faults.load import CHAT, CLASSES, Course, read_all, requests
from faults.rows import Expected, Table
from faults.strikes import LONGEST_PAUSE_S, Fault, a_rank, at, five_in_a_row, killing, stopping
from support.service import Service, gone, stream_request

from pagewire.client import Client

MAX_TOKENS = 80
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
TWO_RANKS = ("SIGKILL of one rank of two",)
DEFAULT_MODEL = ("the default model: SIGKILL of the worker", "the default model: preemptions")
SUPERVISOR = ("SIGKILL of the supervisor",)


def _terminating(service: Service, moment: int, draw: random.Random | None) -> Callable[[Course], None]:
    """SIGTERM once all streams are taken and so many tokens have come; with `draw`, its frontend killed behind that."""

    def during(course: Course) -> None:
        course.wait_until_begun(NUM_STREAMS)
        course.wait_for(moment)
        service.process.send_signal(signal.SIGTERM)
        if draw is not None:
            threading.Event().wait(draw.uniform(0.2, 0.8))  # so that it has heard
            service.children()["frontend"].kill()

    return during


class Moments:
    """The rows, each with a service of its own or one that several share."""

    def __init__(self, table: Table, bench: Bench, moments: int, seed: int) -> None:
        self._table = table
        self._bench = bench
        self._moments = moments
        self._seed = seed

    def strike(self, fault: Fault, dtype: str, service: Service, expected: Expected) -> None:
        draw = random.Random(f"{self._seed} {fault.name} {dtype}")
        total = sum(len(output.tokens) for answer in expected.values() for output in answer[2])  # type: ignore[attr-defined]
        with self._table.row(fault.name, dtype, fault.longest_pause_s) as row:
            for _ in range(self._moments):
                told: list[str] = []
                read = read_all(service.address, list(expected), at(fault, service, total, draw, told))
                row.add(read, expected, told)

    def one_rank(self, dtype: str) -> None:
        """Lines of one worker process."""
        with self._bench.serve(dtype) as service:
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
                if self._table.wants(fault.name):
                    self.strike(fault, dtype, service, expected)
        if self._table.wants("100 preemptions"):
            self.preemptions(dtype, expected)
        if self._table.wants("SIGTERM") or self._table.wants("a frontend killed while draining"):
            self.sigterm(dtype, expected)

    def preemptions(self, dtype: str, expected: Expected) -> None:
        """In memory for a few of the sequences."""
        token_bytes = 4 * 2 * 4 * 32 * (4 if dtype == "float32" else 2)
        with (
            self._table.row("100 preemptions", dtype) as row,
            self._bench.serve(dtype, kv_cache_bytes=token_bytes * 1024, block_size=16) as service,
        ):
            while (load := service.load()).preemptions < 100 and row.moments < 20:
                row.add(read_all(service.address, list(expected)), expected, [])
            row.told = f"{service.load().preemptions} preemptions"
            row.failed = load.preemptions < 100

    def sigterm(self, dtype: str, expected: Expected) -> None:
        """Streams that run are finished; the status is 0, and 1 where a frontend took streams along."""
        for name, loses in (("SIGTERM", False), ("a frontend killed while draining", True)):
            if not self._table.wants(name):
                continue
            draw = random.Random(f"{self._seed} {name} {dtype}")
            # Long ones where some must be lost, or all have ended before the frontend is killed.
            asked = requests(list(CLASSES), NUM_STREAMS, 4 * MAX_TOKENS) if loses else list(expected)
            with self._table.row(name, dtype) as row:
                for _ in range(self._moments):
                    with self._bench.serve(dtype, drain_grace_s=120) as service:
                        moment = draw.randint(1, NUM_STREAMS * MAX_TOKENS // 2)
                        read = read_all(service.address, asked, _terminating(service, moment, draw if loses else None))
                        status = service.process.wait(60)
                    if loses:
                        row.moments += 1
                        row.told = f"exit status {status}, {len(read.errors)} streams told so"
                        row.failed = row.failed or status == 0 or not read.errors
                    else:
                        row.add(read, expected, [f"exit status {status}"])
                        row.failed = row.failed or status != 0

    def two_ranks(self) -> None:
        with self._bench.serve("float32", tensor_parallel_size=2) as service:
            asked = requests(list(CLASSES), NUM_STREAMS, MAX_TOKENS)
            recorded = read_all(service.address, asked)
            assert not recorded.errors, recorded.errors
            self.strike(Fault("SIGKILL of one rank of two", a_rank), "float32", service, recorded.answers)

    def default_model(self) -> None:
        """SmolLM2 in its default type: 64 greedy and 64 seeded streams, over kills and preemptions."""
        asked = requests(["greedy", "seeded"], 2 * NUM_STREAMS, MAX_TOKENS)
        with self._bench.serve("auto", model="smollm2-135m", max_num_seqs=128) as service:
            recorded = read_all(service.address, asked)
            assert not recorded.errors, recorded.errors
            fault = Fault("the default model: SIGKILL of the worker", killing("worker"), math.inf)
            self.strike(fault, "auto", service, recorded.answers)
        with (
            self._table.row("the default model: preemptions", "auto", math.inf) as row,
            self._bench.serve("auto", model="smollm2-135m", max_num_seqs=128, kv_cache_bytes=23_040 * 2048) as service,
        ):
            row.add(read_all(service.address, asked), recorded.answers, [])
            row.told = f"{service.load().preemptions} preemptions"
            row.failed = not service.load().preemptions

    def supervisor(self) -> None:
        with self._table.row("SIGKILL of the supervisor", "", 5.0) as row, tempfile.TemporaryDirectory() as folder:
            draw = random.Random(self._seed)
            settings = {"listen": f"127.0.0.1:{free_port()}", "runtime_dir": Path(folder, "run")}
            for moment in range(self._moments):
                with self._bench.serve("float32", **settings) as service, Client(service.address) as client:
                    # A template and a grammar, so that the processes that read them are there too.
                    client.generate(CHAT, max_tokens=4)
                    call = service.inference.StreamGenerate(stream_request([1, 2, 3], stopping={"max_tokens": 300}))
                    for _ in range(draw.randint(1, 100)):
                        next(call)
                    children = psutil.Process(service.process.pid).children(recursive=True)
                    service.process.kill()
                    left = gone(children, 5)
                    row.moments, row.total, row.equal = moment + 1, moment + 1, row.equal + (not left)
                    row.told = f"{len(left)} of {len(children)} processes left after 5 s; the next one served"
