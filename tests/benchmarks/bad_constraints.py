"""What bad constraints cost others: streams by turns of seconds alone and beside constraints that are refused.

Whoever asks for the bad ones is a process of its own, behind everything else on the machine: its processor would be its
own. What is measured is what the service's share of a refusal takes from the streams. A machine's speed and a step's
length change over minutes; windows of seconds in turn see the same of both. On a machine with other programs at work
those windows count apart in which they had hardly a part of the processors.
"""

import asyncio
import itertools
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import grpc
import numpy as np
from benchmarks.processes import Family, machine_busy_s
from benchmarks.special_rows import LIMIT_S
from support.service import generation, serve, stream_request

from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2, inference_pb2_grpc

_WINDOW_S = 4.0
_OTHERS_SHARE = 0.05
"""Of one processor: where other programs have more in a window, it is none of the service's own."""
_PERCENTILES = (50, 90, 99)


def _bad_ones() -> Iterator[pb.Constraint]:
    """No two alike."""
    for number in itertools.count():
        yield pb.Constraint(json_schema=f'{{"a{number}":' + '{"a":' * 20_000 + "1" + "}" * 20_001)
        yield pb.Constraint(json_schema=f'{{"type": "nothing {number}"}}')
        yield pb.Constraint(regex="(" * 60_000 + f"a{number}" + ")" * 60_000)
        yield pb.Constraint(regex=f"(a{{1,1000}}){{1,1000}}{number}(")
        yield pb.Constraint(regex=f"{number}(")
        yield pb.Constraint(grammar="start: " + "(" * 60_000 + f'"a{number}"' + ")" * 60_000)
        yield pb.Constraint(grammar=f"root{number} ::= " + "(" * 60_000)
        yield pb.Constraint(grammar=f'start: start "{number}"')
        yield pb.Constraint(choice=pb.Choices())


def _is_beside(window: int) -> bool:
    """Whether bad ones are asked for in this window."""
    return window % 2 == 1


def refuse(address: str, num_bad: int, interval_s: float) -> None:
    """Ask for one bad constraint each `interval_s` of the windows in which they are; prints how many it was, how much
    later than that, and how long the slowest took. Begins at the time that its input says, and ends with its input."""
    os.nice(19)
    requests = [
        inference_pb2.GenerateRequest(
            generation=generation(text="x", constraint=constraint, stopping={"max_tokens": 5})
        ).SerializeToString()
        for constraint in itertools.islice(_bad_ones(), num_bad)
    ]
    method = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].methods_by_name["Generate"]
    ask = grpc.insecure_channel(address).unary_unary(f"/{method.containing_service.full_name}/{method.name}")
    print("prepared", flush=True)
    began_s = float(sys.stdin.readline())
    slowest_s, late_s = 0.0, list[float]()
    for number, request in enumerate(requests):
        wanted_s = _in_windows_s(number * interval_s)
        asking_s = began_s + _as_soon_as_beside_s(max(wanted_s, time.monotonic() - began_s))
        if select.select([sys.stdin], [], [], max(0.0, asking_s - time.monotonic()))[0]:
            break
        asked_s = time.monotonic()
        late_s.append(asked_s - began_s - wanted_s)
        try:
            ask(request, timeout=LIMIT_S)
            raise AssertionError(f"{request!r} was accepted")
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
        slowest_s = max(slowest_s, time.monotonic() - asked_s)
    late_ms = 1000 * statistics.median(late_s) if late_s else 0.0
    print(f"{len(late_s)} refused, {late_ms:.0f} ms late (median), the slowest after {1000 * slowest_s:.0f} ms")


def _in_windows_s(elapsed_s: float) -> float:
    """From a time that runs in the windows with bad ones alone to one that runs in all of them."""
    window, rest_s = divmod(elapsed_s, _WINDOW_S)
    return float((2 * window + 1) * _WINDOW_S + rest_s)


def _as_soon_as_beside_s(elapsed_s: float) -> float:
    """This time, or the beginning of the next window with bad ones."""
    window = int(elapsed_s // _WINDOW_S)
    return elapsed_s if _is_beside(window) else (window + 1) * _WINDOW_S


@dataclass
class _Gaps:
    """Times between two messages of a stream, ms, by whether bad ones were beside."""

    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)

    def add(self, others: "_Gaps") -> None:
        self.alone += others.alone
        self.beside += others.beside

    def show(self, whose: str) -> None:
        """Percentiles of both, where there are both."""
        if not (self.alone and self.beside):
            print(f"{whose}: none of each kind")
            return
        for percentile in _PERCENTILES:
            alone, beside = (float(np.percentile(gaps, percentile)) for gaps in (self.alone, self.beside))
            print(
                f"{whose}: p{percentile} between tokens {alone:.1f} ms alone, {beside:.1f} beside, "
                f"ratio {beside / alone:.3f}"
            )


class _Round:
    """As many readers as there are streams at once, each of which reads so many tokens, and what was seen of them."""

    def __init__(self, address: str, num_streams: int, num_tokens: int) -> None:
        self._address = address
        self._num_tokens = num_tokens
        self.texts = [b""] * num_streams
        self.began_s = time.monotonic()
        self._gaps: list[tuple[float, float]] = []
        """When a message came, and how long after the one before."""
        self._others_s: list[float] = []
        """What other programs had of the processors in each window."""

    async def run(self) -> None:
        """Until every stream has ended."""
        watching = asyncio.create_task(self._watch_others())
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            await asyncio.gather(*[self._read(stub, index) for index in range(len(self.texts))])
        watching.cancel()

    async def _read(self, stub: inference_pb2_grpc.InferenceServiceStub, index: int) -> None:
        """One stream after the other. The first of each reader has another length, so that as many tokens as before are
        looked back at in every step."""
        longest = self._num_tokens // 2
        first = longest * (index + 1) // len(self.texts)
        for num_tokens in (first, longest, longest - first):
            if num_tokens:
                await self._read_stream(stub, index, num_tokens)

    async def _read_stream(self, stub: inference_pb2_grpc.InferenceServiceStub, index: int, num_tokens: int) -> None:
        request = stream_request(
            [index + 1] * 8, sampling={"temperature": 0}, stopping={"max_tokens": num_tokens, "ignore_eos": True}
        )
        last_s = None
        async for event in stub.StreamGenerate(request, timeout=LIMIT_S):
            if event.HasField("delta"):
                now_s = time.monotonic()
                if last_s is not None:
                    self._gaps.append((now_s, now_s - last_s))
                last_s = now_s
                self.texts[index] += b"".join(token.text for token in event.delta.tokens)

    async def _watch_others(self) -> None:
        family = Family(os.getpid())
        before_s = machine_busy_s() - family.cpu_s()
        for window in itertools.count(1):
            await asyncio.sleep(self.began_s + window * _WINDOW_S - time.monotonic())
            now_s = machine_busy_s() - family.cpu_s()
            self._others_s.append(now_s - before_s)
            before_s = now_s

    def gaps(self, most_of_others: float) -> _Gaps:
        """Those of windows in which other programs had at most so much of a processor."""
        found = _Gaps()
        for ended_s, gap_s in self._gaps:
            window = int((ended_s - self.began_s) // _WINDOW_S)
            began_in = int((ended_s - gap_s - self.began_s) // _WINDOW_S)
            if window != began_in or window >= len(self._others_s):
                continue
            if self._others_s[window] <= most_of_others * _WINDOW_S:
                (found.beside if _is_beside(window) else found.alone).append(1000 * gap_s)
        return found

    def others(self) -> float:
        """What other programs had of a processor, on average."""
        return sum(self._others_s) / (_WINDOW_S * max(1, len(self._others_s)))


def bad(rounds: int, num_bad: int, num_streams: int, num_tokens: int) -> None:
    """Prints, for each round and all of them, percentiles between tokens and their ratio."""
    # In fp32, where a stream's tokens do not depend on what is computed beside it.
    settings = {"dtype": "float32", "max_num_seqs": num_streams + 8, "max_model_len": 2048}
    found = {"all windows": _Gaps(), "windows without other programs": _Gaps()}
    most = {"all windows": float("inf"), "windows without other programs": _OTHERS_SHARE}
    with serve(model="smollm2-135m", device="cpu", **settings) as service:
        alone = _Round(service.address, num_streams, num_tokens)
        asyncio.run(alone.run())
        # Half of the windows have bad ones, and a round may be a little shorter than the one before.
        interval_s = 0.45 * (time.monotonic() - alone.began_s) / num_bad
        for _ in range(rounds):
            command = [sys.executable, __file__, service.address, str(num_bad), str(interval_s)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                assert process.stdout.readline() == "prepared\n"
                beside = _Round(service.address, num_streams, num_tokens)
                process.stdin.write(f"{beside.began_s}\n")
                process.stdin.flush()
                asyncio.run(beside.run())
                said = process.communicate()[0].strip()
            assert beside.texts == alone.texts, "a stream is not what it was alone"
            print(f"{1 / interval_s:.0f} a second: {said}; streams identical", end="; ")
            print(f"other programs had {beside.others():.2f} processors")
            for whose, gaps in found.items():
                gaps.add(beside.gaps(most[whose]))
    for whose, gaps in found.items():
        gaps.show(whose)


if __name__ == "__main__":
    address, num_bad, interval_s = sys.argv[1:]
    refuse(address, int(num_bad), float(interval_s))
