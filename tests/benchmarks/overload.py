"""What overload does: `python tests/benchmarks/overload.py [--seconds N]`.

A service on a device that runs no model and takes 40 ms a step, so that its rate is that of its 16 slots whatever else
the machine does, and its clients, in a process of their own on the same cores. Measured are

- goodput with all slots taken and nobody refused; then under tenfold overload of two kinds: ten times as many clients
  as the service holds, running and waiting, who come again when they are told to; and clients who ask ten times as
  often as it can answer and never come again;
- what the refused are told: how long until they are, and how many of those who come again at that time are let in;
- how long after its end overload is still felt, by a probe every quarter of a second;
- the prediction of the time to first token in Started, against the truth;
- the time to first token of a modest tenant, alone and beside one that fills its share of the queue.

Prints a table and exits 1 where a bound does not hold. Two minutes of each overload by default.
"""

import argparse
import asyncio
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import grpc
import msgspec
import numpy as np
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.service import LIMIT_S, Service, bearer, serve, stream_request

from pagewire.client.errors import Overloaded, from_rpc_error
from pagewire.v1 import admin_pb2, inference_pb2_grpc

_STEP_S = 0.04
_SLOTS, _PLACES = 16, 32
_OUTPUT = (20, 60)
_RATE = _SLOTS / (_STEP_S * sum(_OUTPUT) / 2)
"""Requests a second that the slots can answer, at most."""
_TENFOLD = 10
_KEYS = {"modest": "k" * 16 + "modest", "greedy": "k" * 16 + "greedy"}
_MODEST_PROMPT = 2048
"""Tokens: eight steps alone, for a sim's steps take the same time whatever their tokens. The two that are under way
when it comes, a quarter of that, nobody can take back."""
_MODEST_S = 3.0
"""Between two of its requests: less than its share."""
_THINK_S = 0.5
"""Between an answer and its client's next request, in the mean: who asks at once is there before any other."""
_ARRIVE_S = 4.0
_QUIET_S = 5.0
"""How long the same probes are made before an overload, of which one must not take twice as long afterwards."""
_PROBED_S = 10.0
"""How long an overload is looked for after its end; its probes begin as long before."""
_NUM_MANY = _TENFOLD * (_SLOTS + _PLACES // 2)
"""Clients: a tenant may have half of the queue."""


class Report(msgspec.Struct):
    """What one kind of clients saw. Times in seconds; those of `ends` are of a monotonic clock."""

    ends: list[tuple[float, int]] = []
    """When each answer was there, and its tokens."""
    refusals: list[float] = []
    """How long each took."""
    retries: list[bool] = []
    """Whether each who came when told was let in."""
    told: list[float] = []
    firsts: list[tuple[float, float | None, float]] = []
    """When each asked, what it was told its first token would take, and what it took."""
    healths: list[float] = []
    """How long a health check took meanwhile."""


class Clients:
    """The clients of one process."""

    def __init__(self, channel: grpc.aio.Channel, seed: int) -> None:
        self._stub = inference_pb2_grpc.InferenceServiceStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)
        self._draw = random.Random(seed)
        self.report = Report()

    async def ask(
        self,
        tenant: str = "greedy",
        prompt_len: int = 32,
        output: tuple[int, int] = _OUTPUT,
        *,
        is_retry: bool = False,
    ) -> float | None:
        """One request; none when it was answered, else what it was told to wait."""
        prompt = [self._draw.randrange(3, 250) for _ in range(prompt_len)]
        stopping = {"max_tokens": self._draw.randint(*output), "ignore_eos": True}
        request, report = stream_request(prompt, stopping=stopping), self.report
        metadata = bearer(_KEYS[tenant])
        began_s, predicted_s, num_tokens = time.perf_counter(), None, 0
        try:
            async for message in self._stub.StreamGenerate(request, metadata=metadata, timeout=LIMIT_S):
                if message.HasField("started"):
                    if is_retry:
                        report.retries.append(True)
                    if message.started.HasField("predicted_time_to_first_token"):
                        predicted_s = message.started.predicted_time_to_first_token.ToNanoseconds() / 1e9
                elif message.HasField("delta"):
                    if not num_tokens:
                        report.firsts.append((began_s, predicted_s, time.perf_counter() - began_s))
                    num_tokens += len(message.delta.tokens)
        except grpc.aio.AioRpcError as error:
            took_s = time.perf_counter() - began_s
            told = from_rpc_error(error)
            if not isinstance(told, Overloaded) or told.retry_after_s is None:
                raise
            report.refusals.append(took_s)
            report.told.append(told.retry_after_s)
            if is_retry:
                report.retries.append(False)
            return told.retry_after_s
        report.ends.append((time.perf_counter(), num_tokens))
        return None

    async def come_again(self) -> None:
        """For ever, a request after the other, each again as often as it must. All do not begin at once."""
        await asyncio.sleep(self._draw.uniform(0, _ARRIVE_S))
        told_s = None
        while True:
            told_s = await self.ask(is_retry=told_s is not None)
            await asyncio.sleep(self._draw.expovariate(1 / _THINK_S) if told_s is None else told_s)

    async def flood(self) -> None:
        """For ever, ten times as often as can be answered."""
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self.ask())
                await asyncio.sleep(self._draw.expovariate(_TENFOLD * _RATE))

    async def check_health(self) -> None:
        """For ever, 20 times a second: what a call costs that nobody decides about."""
        while True:
            began_s = time.perf_counter()
            await self._health.Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)
            self.report.healths.append(time.perf_counter() - began_s)
            await asyncio.sleep(0.05)

    async def probe(self, prompt_len: int, every_s: float, begins_s: float = 0.0) -> None:
        """For ever, one request at a time that wants its first token alone."""
        await asyncio.sleep(begins_s)
        while True:
            await self.ask("modest", prompt_len, (1, 1))
            await asyncio.sleep(every_s)


async def be_clients(address: str, kind: str, seconds: float) -> Report:
    """What the process of clients does."""
    async with grpc.aio.insecure_channel(address) as channel:
        clients = Clients(channel, seed=len(kind))
        work: dict[str, Callable[[], list[Any]]] = {
            "full": lambda: [clients.come_again() for _ in range(_SLOTS + 8)],
            "overload": lambda: [clients.come_again() for _ in range(_NUM_MANY)],
            "flood": lambda: [clients.flood()],
            "probe": lambda: [clients.probe(32, 0.25, seconds - 2 * _PROBED_S)],
            "quiet": lambda: [clients.probe(32, 0.25)],
            "modest": lambda: [clients.probe(_MODEST_PROMPT, _MODEST_S)],
        }
        tasks = [asyncio.ensure_future(each) for each in [*work[kind](), clients.check_health()]]
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in done:
            task.result()
        return clients.report


@contextmanager
def clients(service: Service, kind: str, seconds: float) -> Iterator[Callable[[], Report]]:
    """A process of clients, and what gives their report when they have ended."""
    command = [sys.executable, __file__, "--be", kind, "--address", service.address, "--seconds", str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)

    def report() -> Report:
        said, _ = process.communicate(timeout=seconds + LIMIT_S)
        if process.returncode:
            raise SystemExit(f"the clients ended with {process.returncode}")
        return msgspec.json.decode(said, type=Report)

    try:
        yield report
    finally:
        process.kill()
        process.wait()


class Table:
    """Lines as they come, and whether all bounds hold."""

    def __init__(self) -> None:
        self.holds = True

    def line(self, what: str, value: str, bound: str = "", *, holds: bool = True) -> None:
        self.holds = self.holds and holds
        print(f"{what:58} {value:>26}   {bound:14}{'' if holds else 'DOES NOT HOLD'}", flush=True)


def goodput(report: Report) -> float:
    """Tokens a second of whole answers, while slots are all taken."""
    first_s, last_s = report.ends[0][0] + _ARRIVE_S, report.ends[-1][0]
    return sum(tokens for end_s, tokens in report.ends if first_s < end_s <= last_s) / (last_s - first_s)


class Neighbours:
    """What else the machine does: times are no better than the share of it that is left."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._since = self._busy_s()

    def share(self) -> float:
        """Of the machine's processors, since it was made, taken by others than service and clients. Clients count when
        they have ended."""
        machine_s, own_s, wall_s = (now - then for now, then in zip(self._busy_s(), self._since, strict=True))
        return max(0.0, machine_s - own_s) / (wall_s * psutil.cpu_count())

    def _busy_s(self) -> tuple[float, float, float]:
        times, clients_s = psutil.cpu_times(), resource.getrusage(resource.RUSAGE_CHILDREN)
        own_s = clients_s.ru_utime + clients_s.ru_stime + time.process_time()
        for process in [psutil.Process(self._service.process.pid), *self._service.children().values()]:
            used = process.cpu_times()
            own_s += used.user + used.system
        return sum(times) - times.idle - times.iowait, own_s, time.perf_counter()


def wait_until_idle(service: Service) -> None:
    service.wait_for_load(lambda load: not load.running_sequences + load.waiting_sequences)


def most_until(service: Service, until_s: float) -> tuple[int, int]:
    """The most sequences that ran, and that waited, until then."""
    running, waiting = [0], [0]

    def seen(load: admin_pb2.Load) -> bool:
        running.append(load.running_sequences)
        waiting.append(load.waiting_sequences)
        return time.monotonic() >= next_s

    while (now_s := time.monotonic()) < until_s:
        next_s = min(until_s, now_s + LIMIT_S / 2)
        service.wait_for_load(seen)
    return max(running), max(waiting)


def run_overload(service: Service, table: Table, kind: str, seconds: float, full: float) -> None:
    """One kind of overload, and what is left of it afterwards."""
    with clients(service, "quiet", _QUIET_S) as quiet_of:
        usual_s = float(np.percentile([took_s for _, _, took_s in quiet_of().firsts], 99))
    neighbours = Neighbours(service)
    with clients(service, kind, seconds) as report_of, clients(service, "probe", seconds + _PROBED_S) as probes_of:
        running, waiting = most_until(service, time.monotonic() + seconds)
        report = report_of()
        ended_s = time.perf_counter()
        probes = probes_of()
    table.line(f"{kind}: of the processors others took", f"{neighbours.share():.0%}")
    holds = running <= _SLOTS and waiting <= _PLACES
    table.line(f"{kind}: most that ran and waited", f"{running}, {waiting}", f"≤ {_SLOTS}, {_PLACES}", holds=holds)
    ratio = goodput(report) / full
    table.line(f"{kind}: goodput", f"{goodput(report):.0f} tokens/s, {ratio:.1%}", "≥ 97 %", holds=ratio >= 0.97)
    p50, p99 = np.percentile(report.refusals, [50, 99]) * 1e3
    health = np.percentile(report.healths, [50, 99]) * 1e3
    said = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"
    table.line(f"{kind}: {len(report.refusals):,} refusals", said, "p99 ≤ 10 ms", holds=p99 <= 10)
    table.line("  a health check from the same client meanwhile", f"p50 {health[0]:.1f} ms, p99 {health[1]:.1f} ms")
    if report.retries:
        share = sum(report.retries) / len(report.retries)
        told = np.percentile(report.told, [50, 100])
        table.line(f"{kind}: of {len(report.retries):,} who came when told", f"{share:.1%} let in", "≥ 50 %",
                   holds=share >= 0.5)  # fmt: skip
        table.line("  told to wait", f"p50 {told[0]:.1f} s, at most {told[1]:.1f} s")
    late = [(predicted_s, truth_s) for _, predicted_s, truth_s in report.firsts if predicted_s is not None]
    late = late[len(late) // 4 :]
    errors = [abs(predicted_s - truth_s) / truth_s for predicted_s, truth_s in late]
    bias = sum(predicted_s for predicted_s, _ in late) / sum(truth_s for _, truth_s in late)
    table.line(f"{kind}: {len(late):,} predictions of the first token",
               f"error p50 {np.median(errors):.0%}, p90 {np.percentile(errors, 90):.0%}")  # fmt: skip
    table.line("  all predicted over all true", f"{bias:.2f}")
    felt = [began_s + took_s - ended_s for began_s, _, took_s in probes.firsts if took_s > 2 * usual_s]
    felt_s = max([0.0, *felt])
    table.line(f"{kind}: felt after its end, by probes", f"{felt_s:.1f} s", "≤ 5 s", holds=felt_s <= 5)


def run_modest(service: Service, table: Table, seconds: float) -> None:
    """A modest tenant, alone and beside a greedy one."""
    p99, p50 = {}, {}
    for is_alone in (True, False):
        wait_until_idle(service)
        with clients(service, "modest" if is_alone else "overload", seconds) as report_of:
            if is_alone:
                report = report_of()
            else:
                service.wait_for_load(lambda load: load.waiting_sequences >= _PLACES // 2)
                with clients(service, "modest", seconds - 10) as modest_of:
                    report = modest_of()
        p50[is_alone], p99[is_alone] = np.percentile([took_s for _, _, took_s in report.firsts], [50, 99]) * 1e3
        name = "alone" if is_alone else "beside a greedy one"
        table.line(f"modest tenant {name}: {len(report.firsts)} first tokens",
                   f"p50 {p50[is_alone]:.0f} ms, p99 {p99[is_alone]:.0f} ms")  # fmt: skip
    ratio = p99[False] / p99[True]
    table.line("  p99 beside over alone", f"{ratio:.2f}", "≤ 1.5", holds=ratio <= 1.5)


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=120.0, help="of each overload")
    parser.add_argument("--be", help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.be:
        report = asyncio.run(be_clients(arguments.address, arguments.be, arguments.seconds))
        print(json.dumps(msgspec.to_builtins(report)))
        return 0
    table = Table()
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
        keys.write("".join(f"{tenant}:{key}\n" for tenant, key in _KEYS.items()))
        keys.flush()
        settings = {
            "sim_step_us": round(_STEP_S * 1e6),
            "max_num_seqs": _SLOTS,
            "max_num_batched_tokens": 256,
            "max_queued": _PLACES,
            "max_model_len": 4096,
            "api_keys_file": keys.name,
            "admin_tenants": "modest",
            "enable_prefix_caching": False,
        }
        with serve(operator_key=_KEYS["modest"], **settings) as service:
            with clients(service, "full", min(30.0, arguments.seconds)) as report_of:
                report = report_of()
            full = goodput(report)
            table.line(
                "all slots taken, nobody refused: goodput", f"{full:.0f} tokens/s, {len(report.refusals)} refused"
            )
            for kind in ("overload", "flood"):
                wait_until_idle(service)
                run_overload(service, table, kind, arguments.seconds, full)
            run_modest(service, table, min(60.0, arguments.seconds))
    return 0 if table.holds else 1


if __name__ == "__main__":
    sys.exit(main())
