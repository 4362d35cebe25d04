"""`python tests/gpu/report/installed.py`: whether the pagewire that Python finds is this tree's, for figures of another
would be taken for this one's. Says what differs and exits with 1. Needs nothing but Python.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = {
    "pagewire.wire": "proto/wire",
    "pagewire.scheduler_svc": "scheduler_svc",
    "pagewire.worker": "worker",
    "pagewire.client": "client",
}
EXAMPLES = "client/examples"
"""To read and to copy: they are not installed."""


def difference(tree: Path) -> str:
    """What is missing or not the same; empty where all is."""
    for package, folder in PACKAGES.items():
        try:
            spec = find_spec(package)
        except ModuleNotFoundError:
            spec = None
        if spec is None or not spec.submodule_search_locations:
            return f"{package} is not installed"
        installed = Path(next(iter(spec.submodule_search_locations)))
        for file in sorted((tree / folder).rglob("*.py")):
            if file.is_relative_to(tree / EXAMPLES):
                continue
            found = installed / file.relative_to(tree / folder)
            if not found.exists() or found.read_bytes() != file.read_bytes():
                return f"{found} is not this tree's {file.relative_to(tree)}"
    return ""


if __name__ == "__main__":
    sys.exit(difference(Path(__file__).resolve().parents[3]) or 0)
