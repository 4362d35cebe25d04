"""Rows that take long: 20,000 cancels, and what they leave behind; and a soak under faults of every kind."""

import random
import statistics
import threading
import time
from collections.abc import Sequence
from typing import Any

from faults.bench import NUM_STREAMS, Bench
from faults.load import CLASSES, read_all, requests
from faults.moments import MAX_TOKENS
from faults.rows import Table
from faults.strikes import every
from support.service import Service, stream_request

SOAK_PAUSE_S = 8.0
FAULT_EVERY_S = 20.0
LOAD = 0.7
"""Of what the service was seen to answer in a second."""
_BATCH = 50
_LOOK_EVERY = 500
_MOST_MIB_PER_1000 = 0.5
"""What a process may grow by with 1,000 cancels, by the line through all looks but the first third's."""


def _cancelled(service: Service, draw: random.Random) -> None:
    """A batch of calls, given up before their first message, behind it, or while others come."""
    calls = []
    for _ in range(_BATCH):
        prompt = [draw.randrange(5, 40_000) for _ in range(16)]
        calls.append(service.inference.StreamGenerate(stream_request(prompt, stopping={"max_tokens": 60})))
        if draw.random() < 0.5:
            calls.pop(draw.randrange(len(calls))).cancel()
    for call in calls:
        if draw.random() < 0.7:
            next(call, None)
        call.cancel()


def _slope(mib: Sequence[float]) -> float:
    """MiB for 1,000 cancels, of looks in order."""
    late = mib[len(mib) // 3 :]
    if len(late) < 2:
        return 0.0
    return statistics.linear_regression(range(len(late)), late).slope * 1000 / _LOOK_EVERY


def cancels(table: Table, bench: Bench, count: int, seed: int) -> None:
    """At random phases; afterwards every block, slot, thread and descriptor is back, and memory does not grow."""
    # Memory is a worker's own once it is written: its KV cache has to be small, to be so in the looks' first third.
    settings = {"stream_buffer_tokens": 64, "kv_cache_bytes": _memory("float32", 40_960)}
    with table.row(f"{count} cancels", "float32") as row, bench.serve("float32", **settings) as service:
        draw = random.Random(seed)

        def used() -> dict[str, tuple[int, float]]:
            service.wait_for_load(lambda load: not load.running_sequences and not load.waiting_sequences)
            return {
                role: (child.num_fds() + child.num_threads(), child.memory_info().rss / 2**20)
                for role, child in service.children().items()
            }

        for _ in range(10):
            _cancelled(service, draw)
        looks = [used()]
        while row.moments < count:
            for _ in range(_LOOK_EVERY // _BATCH):
                _cancelled(service, draw)
            row.moments += _LOOK_EVERY
            looks.append(used())
        blocks = service.load().used_blocks
        # Every slot can be taken: one that was not given back would be missing.
        endless = stream_request([1, 2, 3], stopping={"max_tokens": 400, "ignore_eos": True})
        calls = [service.inference.StreamGenerate(endless) for _ in range(bench.MAX_NUM_SEQS)]
        service.wait_for_load(lambda load: load.running_sequences == bench.MAX_NUM_SEQS)
        for call in calls:
            call.cancel()
        told = []
        for role in looks[0]:
            handles = looks[-1][role][0] - looks[0][role][0]
            slope = _slope([look[role][1] for look in looks])
            told.append(f"{role} {handles:+d} descriptors and threads, {slope:+.2f} MiB for 1,000")
            row.failed = row.failed or handles > 4 or slope > _MOST_MIB_PER_1000
        row.total, row.equal, row.told = 1, int(blocks == 0), "; ".join(told)


def soak(table: Table, bench: Bench, dtype: str, seconds: float, seed: int) -> None:
    """Streams begin one after another, at 70% of what was answered in a second when all came at once, in memory for so
    few that some are preempted; and a fault of any kind every 20 s."""
    name, settings = f"a soak of {seconds:g} s", dict[str, Any](kv_cache_bytes=_memory(dtype, 2048), block_size=16)
    with table.row(name, dtype, SOAK_PAUSE_S) as row, bench.serve(dtype, **settings) as service:
        asked = requests(list(CLASSES), 4 * NUM_STREAMS, MAX_TOKENS)
        began_s = time.monotonic()
        recorded = read_all(service.address, asked)
        interval_s = (time.monotonic() - began_s) / len(asked) / LOAD
        assert not recorded.errors, recorded.errors
        draw, over, told = random.Random(seed), threading.Event(), list[str]()
        striking = threading.Thread(target=every, args=(FAULT_EVERY_S, service, draw, over, told))
        striking.start()
        deadline_s = time.monotonic() + seconds
        try:
            while time.monotonic() < deadline_s:
                row.add(read_all(service.address, asked, interval_s=interval_s), recorded.answers, [])
        finally:
            over.set()
            striking.join()
        counts = ", ".join(f"{told.count(each)} × {each}" for each in dict.fromkeys(told))
        row.told = f"{1 / interval_s:.1f} streams a second; {service.load().preemptions} preemptions; {counts}"
        unstruck = not told or any(each.startswith("FAILED") for each in told)
        row.failed = unstruck or service.process.poll() is not None or row.longest_s > SOAK_PAUSE_S


def _memory(dtype: str, num_tokens: int) -> int:
    """For so many tokens of the small model."""
    return num_tokens * 4 * 2 * 4 * 32 * (4 if dtype == "float32" else 2)
