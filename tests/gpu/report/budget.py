"""The time that processes of the run get: each has a limit, all together have one, and what does not end in time is
ended with everything that it started."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
from gpu.report.checks import PartResult, Status
from gpu.report.results import append_result, read_results

_LEAST_S = 5.0
"""Less is not worth starting for."""
_END_S = 10.0
_LOOK_S = 0.1
MARK = "GPU_REPORT_PROCESS"
"""In the environment of a process of the run and of all that it starts, whatever sessions those are in."""


@dataclass(frozen=True, slots=True)
class Share:
    """Parts that share a process, and the most time it may take."""

    parts: tuple[str, ...]
    limit_s: float


Stage = tuple[Share, ...]
"""Shares that run at the same time."""

GPU_STAGES: tuple[Stage, ...] = (
    (Share(("card",), 45),),
    # Most of their time goes to compiling kernels, each on a core; nothing in them is timed.
    (
        Share(("skinny linears",), 100),
        Share(("skinny linears, large",), 100),
        Share(("kernels", "collectives"), 100),
        Share(("steps",), 100),
        Share(("steps, wide heads",), 100),
        Share(("logits", "flash"), 100),
        Share(("compile small",), 100),
        Share(("compile large",), 100),
        Share(("sanitizer",), 100),
        Share(("exact",), 100),
        Share(("exact, fp32",), 100),
    ),
    (Share(("bare times", "direct", "special times", "kernel times"), 90),),
    (Share(("service",), 85),),
    (Share(("large",), 80),),
)
"""Together no more than the whole run's time. What says what to mend comes first."""
SWEEP_STAGES: tuple[Stage, ...] = ((Share(("card",), 45),), (Share(("sweep",), 200),))
EXACT_STAGES: tuple[Stage, ...] = ((Share(("card",), 45),), (Share(("exact times",), 120),))
PEER_STAGES: tuple[Stage, ...] = (
    (Share(("card",), 45),),
    (Share(("peer workload",), 150),),
    (Share(("peer",), 150),),
)
"""Runs of their own."""
DRY_STAGES: tuple[Stage, ...] = (
    (
        Share(
            (
                "card",
                "skinny linears",
                "skinny linears, large",
                "kernels",
                "collectives",
                "steps",
                "steps, wide heads",
                "logits",
                "flash",
                "sanitizer",
                "compile small",
                "compile large",
                "bare times",
                "direct",
                "special times",
                "kernel times",
                "service",
                "large",
                "exact",
                "exact, fp32",
                "exact times",
                "sweep",
                "peer workload",
                "peer",
            ),
            110,
        ),
    ),
)


WITH: dict[str, tuple[str, ...]] = {"exact": ("exact, fp32", "exact times")}
"""Parts that are asked for by another's name."""


def only(stages: Sequence[Stage], parts: Collection[str]) -> tuple[Stage, ...]:
    """Of these stages the parts that are named, and the card, without whose rates there are no floors."""
    wanted = {"card", *parts}.union(*(WITH.get(part, ()) for part in parts))
    found = []
    for stage in stages:
        shares = [Share(tuple(part for part in share.parts if part in wanted), share.limit_s) for share in stage]
        found.append(tuple(share for share in shares if share.parts))
        wanted -= {part for share in shares for part in share.parts}
    return tuple(stage for stage in found if stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What all processes of a run share."""

    results: Path
    log: Path
    """What they say, one behind the other."""
    dry_run: bool
    environ: Mapping[str, str]


class Budget:
    """Runs shares until the time is up."""

    def __init__(self, total_s: float, clock: Callable[[], float] = time.monotonic, least_s: float = _LEAST_S) -> None:
        """Nothing is started in less than `least_s`."""
        self._clock = clock
        self._least_s = least_s
        self._end_s = clock() + total_s

    def run_stage(self, stage: Stage, course: Course) -> None:
        """All of its shares."""
        with ThreadPoolExecutor(len(stage)) as pool:
            for done in [pool.submit(self.run, share, course) for share in stage]:
                done.result()

    def run(self, share: Share, course: Course) -> None:
        """The share's parts in a process; where it ends early the parts that are left get another one. Afterwards every
        part has a result."""
        limit_end_s = self._clock() + share.limit_s
        left = list(share.parts)
        while left:
            limit_s = min(limit_end_s, self._end_s) - self._clock()
            if limit_s < self._least_s:
                for part in left:
                    append_result(course.results, PartResult(part=part, status="not run", note="no time was left"))
                return
            status, seconds, note = _process(left, course, limit_s, self._clock)
            found = {result.part: result for result in read_results(course.results)}
            left = [part for part in left if part not in found or found[part].status == "running"]
            if left:  # the first of them is where it ended
                part = left.pop(0)
                so_far = found.get(part, PartResult(part=part, status="running"))
                note = "; ".join(filter(None, (so_far.note, note)))
                ended = msgspec.structs.replace(so_far, status=status, seconds=seconds, note=note)
                append_result(course.results, ended)


def _process(
    parts: Sequence[str], course: Course, limit_s: float, clock: Callable[[], float]
) -> tuple[Status, float, str]:
    """What to say of a part that this process did not bring to its end."""
    flags = ["--dry-run"] if course.dry_run else []
    script = Path(__file__).with_name("part.py")
    command = [sys.executable, str(script), "--results", str(course.results), *flags, *parts]
    mark = secrets.token_hex(8)
    begin_s = clock()
    with course.log.open("ab", buffering=0) as log:
        log.write(f"== {', '.join(parts)}\n".encode())
        process = subprocess.Popen(
            command,
            env={**course.environ, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        status = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return "timed out", clock() - begin_s, f"not done after {limit_s:.0f} s"
    finally:
        end(process, mark)
    return "error", clock() - begin_s, f"its process ended with status {status}"


def end(process: subprocess.Popen[bytes], mark: str) -> None:
    """The process and all that it started. Waits until they are gone, because the next part needs the device's memory
    that they hold."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)
    seen: set[int] = set()
    end_s = time.monotonic() + _END_S
    while time.monotonic() < end_s:
        found = _marked(mark)
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        seen |= found
        if not any(map(lives, seen)):
            return
        time.sleep(_LOOK_S)


def _marked(mark: str) -> set[int]:
    """Processes with the mark in their environment, where the system shows it."""
    entry = f"{MARK}={mark}".encode()
    found = set()
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if entry in file.read_bytes().split(b"\0"):
                found.add(int(file.parent.name))
    return found


def lives(pid: int) -> bool:
    """Whether it still holds anything: one that only waits to be asked for its status does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return False
