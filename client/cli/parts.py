"""Asks the service's parts on this machine what they have, each in a process of its own.

The client imports neither; what is not installed, or does not answer, becomes an `Absent` with the reason.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagewire.client import installed
from pagewire.client.json_text import NotJson, from_json

_TIMEOUT_S = 120.0
"""Importing torch from a cold disk takes long."""


@dataclass(frozen=True, slots=True)
class Absent:
    """Why a part gave no answer."""

    reason: str


def known_models() -> Mapping[str, Any] | Absent:
    """The models that `serve --model` takes, and which of them this machine holds."""
    return _ask("scheduler", "pagewire.scheduler_svc", "models", "--json")


def worker_probe() -> Mapping[str, Any] | Absent:
    """Devices, backends and torch."""
    # The worker says itself what it lacks, but for the library that it says it with.
    return _ask("", "pagewire.worker", "probe") if installed.version("msgspec") else _absent("worker")


def _ask(extra: str, *command: str) -> Mapping[str, Any] | Absent:
    if installed.missing(extra):
        return _absent(extra)
    try:
        answer = subprocess.run(
            [sys.executable, "-P", "-m", *command],
            capture_output=True,
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Absent(f"{command[0]} did not answer within {_TIMEOUT_S:g} s")
    if answer.returncode != 0:
        lines = answer.stderr.decode(errors="replace").strip().splitlines()
        return Absent(f"{command[0]} ended with status {answer.returncode}{': ' + lines[-1] if lines else ''}")
    try:
        said = from_json(answer.stdout)
    except NotJson:
        said = None
    return (
        said
        if isinstance(said, dict)
        else Absent(f"{command[0]} said {answer.stdout[:100]!r}, which is no JSON object")
    )


def _absent(extra: str) -> Absent:
    return Absent(f"{', '.join(installed.missing(extra))} not installed: pip install 'pagewire[{extra}]'")
