"""Environment of a run: machine, versions and command, without which a result's figures cannot be compared."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Sequence

from pagewire.client import installed

_LIBRARIES = ("grpcio", "protobuf")
_SECRET_FLAGS = frozenset({"--api-key", "--admin-api-key"})


def hardware() -> dict[str, object]:
    """This machine, on which the load client runs, and the service too where it was spawned."""
    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """This side's libraries; the service adds its own."""
    return {
        "pagewire": installed.version(installed.DISTRIBUTION) or "of a source tree",
        "python": platform.python_version(),
        **{library: installed.version(library) or "missing" for library in _LIBRARIES},
    }


def command(arguments: Sequence[str]) -> str:
    """The command line as one would type it, without keys."""
    shown: list[str] = []
    for argument in arguments:
        flag, has_value, _ = argument.partition("=")
        if shown and shown[-1] in _SECRET_FLAGS:
            shown.append("...")
        elif has_value and flag in _SECRET_FLAGS:
            shown.append(f"{flag}=...")
        else:
            shown.append(argument)
    return shlex.join(["pagewire", *shown])


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() in ("model name", "Hardware", "cpu model"):
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
