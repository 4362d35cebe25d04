"""The example clients of `client/examples`: built where their tools are, left out where they are not."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "client" / "examples"
COMMANDS = {
    "python": (sys.executable, "client.py"),
    "node": ("node", "client.js"),
    "cpp": ("build/client",),
    "go": ("build/client",),
    "java": ("java", "@build/options", "Client"),
}
"""Language → how its README starts it, in its folder."""
ENVIRONMENT = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": "build", "GRPC_GO_RETRY": "on"}
_CANNOT_BUILD = 77
"""What a build script exits with where something is missing; it says what."""


def build(language: str) -> Path:
    """Build a client, once, and return its folder. Skips the test where its tools are missing."""
    built = _build(language)
    if built.returncode == _CANNOT_BUILD:
        pytest.skip(f"{language}: {built.stderr.strip()}")
    assert built.returncode == 0, built.stdout + built.stderr
    return EXAMPLES / language


@cache
def _build(language: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "build.sh"]
    folder = EXAMPLES / language
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
