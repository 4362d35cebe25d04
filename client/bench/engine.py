"""`bench engine`: the scheduler's own measurement, which runs in a process of its own with the service's libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping

from pagewire.client import installed
from pagewire.client.errors import InvalidRequest, LaunchError
from pagewire.client.json_text import NotJson, from_json

_MODULE = "pagewire.scheduler_svc.engine.bench"
_WRONG_WORKLOAD = 2


def measure(workload: Mapping[str, object]) -> dict[str, object]:
    """Microseconds and bytes, by name. Raises LaunchError where the scheduler is not installed or fails."""
    if gone := installed.missing("scheduler"):
        raise LaunchError(f"bench engine needs {', '.join(gone)}: pip install 'pagewire[scheduler]'")
    answer = subprocess.run(
        [sys.executable, "-P", "-m", _MODULE, "--workload", json.dumps(workload)],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    last_words = (answer.stderr.strip().splitlines() or [""])[-1]
    if answer.returncode == _WRONG_WORKLOAD:
        raise InvalidRequest(last_words.partition(": ")[2])
    if answer.returncode != 0:
        raise LaunchError(f"the engine's measurement ended with status {answer.returncode}: {last_words}")
    try:
        measured: dict[str, object] = from_json(answer.stdout)
    except NotJson as error:
        raise LaunchError(
            f"the engine's measurement said {answer.stdout[:100]!r}, which is no JSON: {error}"
        ) from error
    return measured
