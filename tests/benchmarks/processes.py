"""What the processes of a side take: processor time now, and the most memory each has held. Linux."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Bytes of resident memory, each process at its own peak (VmHWM)."""

    largest: int
    """Of the process that held most: the one with the model."""
    total: int
    """Of all of them together, though their peaks may not have met."""


class Family:
    """A process and all that descend from it."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def members(self) -> list[psutil.Process]:
        """Those that run now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self._root, *self._root.children(recursive=True)]
        return []

    def cpu_s(self) -> float:
        """Processor time that the members now running have used."""
        total = 0.0
        for member in self.members():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = member.cpu_times()
                total += times.user + times.system
        return total

    def peak_memory(self) -> PeakMemory:
        """Of the members now running."""
        peaks = [_peak_bytes(member.pid) for member in self.members()]
        return PeakMemory(largest=max(peaks, default=0), total=sum(peaks))

    def wait_until_idle(
        self, timeout_s: float, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Until a fifth of a second passes with less than a tenth of a core used. vLLM's worker spins for a second
        after its last step, OpenMP's threads for a moment. Raises TimeoutError."""
        deadline_s = clock() + timeout_s
        used_s = self.cpu_s()
        while clock() < deadline_s:
            sleep(_WATCH_S)
            before_s, used_s = used_s, self.cpu_s()
            if used_s - before_s < _WATCH_S * _IDLE_SHARE:
                return
        raise TimeoutError(f"process {self._root.pid} and its children were still busy after {timeout_s:g} s")


_WATCH_S = 0.2
_IDLE_SHARE = 0.1


def _peak_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def own_cpu_s() -> float:
    """Processor time of this process."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def machine_busy_s() -> float:
    """Processor time that everything on this machine has used since it was started, host's theft included."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)
