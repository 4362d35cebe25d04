"""The machine: what its processor and its memory offer. Reads /proc and /sys where there are any; imports no torch."""

import os
from pathlib import Path

INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
"""Those that decide how fast products run, as the kernel names them on x86 and Arm."""


def usable_cores(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores this process may keep busy: its affinity, and a container's CPU quota, which affinity does not show.

    With more threads than that, every barrier of a parallel product waits for a thread that is not running.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota(cpu_max)
    return cores if quota is None else max(1, min(cores, int(quota)))


def _cpu_quota(path: Path) -> float | None:
    """Cores' worth of time that control group v2 allows; None for no limit."""
    try:
        quota, period = path.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no control groups, or "max"
        return None


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Every flag the kernel reports for the first core; empty where it reports none."""
    try:
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return frozenset(value.split())
    except OSError:
        pass
    return frozenset()


def instruction_sets() -> list[str]:
    """Which of INSTRUCTION_SETS this processor has."""
    flags = cpu_flags()
    return [name for name in INSTRUCTION_SETS if name in flags]


def processor_name() -> str:
    """The first core's model, as the kernel names it."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return "CPU"


def available_memory_bytes() -> int:
    """What a process may still allocate without swapping: the kernel's MemAvailable, less where a control group
    limits this process. Half the machine's memory where the kernel does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # no control group of version 2, or "max"
        return available
    return max(0, min(available, limit - used))
