"""The time that processes of the run get: each has a limit, all together have one, and what does not end in time is
ended with everything that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpu.report.checks import PartResult, Status
from gpu.report.results import append_result, read_results

_LEAST_S = 5.0
"""Less is not worth starting for."""
_END_S = 5.0


@dataclass(frozen=True, slots=True)
class Share:
    """Parts that share a process, and the most time it may take."""

    parts: tuple[str, ...]
    limit_s: float


Stage = tuple[Share, ...]
"""Shares that run at the same time."""

GPU_STAGES: tuple[Stage, ...] = (
    (Share(("card",), 40),),
    # Most of their time goes to compiling kernels, each on a core; nothing in them is timed.
    (Share(("steps",), 130), Share(("kernels",), 130), Share(("logits", "flash"), 130)),
    (Share(("service",), 180),),
    (Share(("direct",), 90),),
    (Share(("large",), 120),),
    (Share(("peer",), 90),),
)
"""More together than the whole run's time: what most parts leave is there for one that is slow."""
DRY_STAGES: tuple[Stage, ...] = (
    (Share(("card", "steps", "logits", "flash", "kernels", "service", "direct", "large", "peer"), 110),),
)


class Budget:
    """Runs shares until the time is up."""

    def __init__(self, total_s: float, clock: Callable[[], float] = time.monotonic, least_s: float = _LEAST_S) -> None:
        """Nothing is started in less than `least_s`."""
        self._clock = clock
        self._least_s = least_s
        self._end_s = clock() + total_s

    def run_stage(self, stage: Stage, results: Path, dry_run: bool, environ: Mapping[str, str]) -> None:
        """All of its shares."""
        with ThreadPoolExecutor(len(stage)) as pool:
            for done in [pool.submit(self.run, share, results, dry_run, environ) for share in stage]:
                done.result()

    def run(self, share: Share, results: Path, dry_run: bool, environ: Mapping[str, str]) -> None:
        """The share's parts in a process; where it ends early the parts that are left get another one. Afterwards every
        part has a result."""
        limit_end_s = self._clock() + share.limit_s
        left = list(share.parts)
        while left:
            limit_s = min(limit_end_s, self._end_s) - self._clock()
            if limit_s < self._least_s:
                for part in left:
                    append_result(results, PartResult(part=part, status="not run", note="no time was left"))
                return
            status, seconds, note = _process(left, results, dry_run, environ, limit_s, self._clock)
            done = {result.part for result in read_results(results)}
            left = [part for part in left if part not in done]
            if left:  # the first of them is where it ended
                append_result(results, PartResult(part=left.pop(0), status=status, seconds=seconds, note=note))


def _process(
    parts: Sequence[str],
    results: Path,
    dry_run: bool,
    environ: Mapping[str, str],
    limit_s: float,
    clock: Callable[[], float],
) -> tuple[Status, float, str]:
    """What to say of a part that this process did not bring to its end."""
    flags = ["--dry-run"] if dry_run else []
    command = [sys.executable, str(Path(__file__).with_name("part.py")), "--results", str(results), *flags, *parts]
    begin_s = clock()
    process = subprocess.Popen(command, env=dict(environ), stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        status = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return "timed out", clock() - begin_s, f"not done after {limit_s:.0f} s"
    finally:
        _end(process)
    return "error", clock() - begin_s, f"its process ended with status {status}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and all that is left of its group. A service that it spawned is in a session of its own, and ends
    with it, because it watches its parent."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)
