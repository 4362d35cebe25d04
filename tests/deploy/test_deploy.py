"""What `deploy/` holds agrees with the project; the quickstart's whole way is a test of the service."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[2]
NAME = re.compile(r"[A-Za-z0-9._-]+")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_pin_every_requirement() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        requirements += extra
    required = {normal(match.group()) for line in requirements if (match := NAME.match(line))} - {"pagewire"}
    pins = {}
    for line in (PROJECT / "deploy" / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, separator, version = line.partition("==")
            assert separator, line
            assert re.fullmatch(r"[0-9][0-9A-Za-z.]*", version), line  # no URL, no local version
            pins[normal(name)] = version
    assert required - set(pins) == set()
    assert pins["torch"] == "2.13.0"


def test_quickstart_says_which_python_it_needs(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(PROJECT / "deploy" / "quickstart.sh")],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHON": "false",
            "PAGEWIRE_VENV": str(tmp_path / "v"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("quickstart: needs Python 3.11 or newer")
    assert not (tmp_path / "v").exists()


def test_every_advisory_stands_once_and_its_tests_are_there() -> None:
    text = (PROJECT / "deploy" / "ADVISORIES.md").read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ") and "`tests/" in line]
    advisories = [name for row in rows for name in re.findall(r"(?:CVE|GHSA|PYSEC)-[0-9a-z-]+", row[0])]
    assert len(advisories) == len(set(advisories)) >= 70
    for row in rows:
        for file, name in re.findall(r"`(tests/[\w/.]+)::(\w+)`", row[3]):
            source = (PROJECT / file).read_text()
            assert re.search(rf"^ *(?:async )?def {name}\(", source, re.MULTILINE), f"{file}::{name}"
        assert "::test_" in row[3], row[0]
