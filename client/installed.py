"""What is installed: this distribution's extras, by its own metadata, and what the service's parts say they have.

The client imports none of those parts: each is asked in a process of its own, and what is not installed, or does not
answer, becomes an `Absent` with the reason.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from pagewire.client.json_text import NotJson, from_json

DISTRIBUTION = "pagewire"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRA = re.compile(r"""extra\s*==\s*["']([\w-]+)["']""")

_TIMEOUT_S = 120.0
"""Importing torch from a cold disk takes long."""


def version(distribution: str) -> str | None:
    """The installed version, none where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def requirements(extra: str) -> Mapping[str, str | None]:
    """The distributions that an extra needs ("" for none) and their installed versions, none where missing."""
    found: dict[str, str | None] = {}
    for line in metadata.requires(DISTRIBUTION) or ():
        name, of = _NAME.match(line), _EXTRA.search(line)
        if name is not None and (of.group(1) if of else "") == extra:
            found[name.group()] = version(name.group())
    return found


def missing(extra: str) -> list[str]:
    """What an extra needs and is not here."""
    return [name for name, found in requirements(extra).items() if found is None]


@dataclass(frozen=True, slots=True)
class Absent:
    """Why a part gave no answer."""

    reason: str


def known_models() -> Mapping[str, Any] | Absent:
    """The models that `serve --model` takes, and which of them this machine holds."""
    return _ask("scheduler", "pagewire.scheduler_svc", "models", "--json")


def auto_device() -> Mapping[str, Any] | Absent:
    """What `serve` runs on where no device is asked for, and why."""
    return _ask("scheduler", "pagewire.scheduler_svc", "device")


def worker_probe() -> Mapping[str, Any] | Absent:
    """Devices, backends and torch."""
    # The worker says itself what it lacks, but for the library that it says it with.
    return _ask("", "pagewire.worker", "probe") if version("msgspec") else _absent("worker")


def _ask(extra: str, *command: str) -> Mapping[str, Any] | Absent:
    if missing(extra):
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
    return Absent(f"{', '.join(missing(extra))} not installed: pip install 'pagewire[{extra}]'")
