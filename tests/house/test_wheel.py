"""The built wheel holds exactly the tree: a forgotten `packages` entry would ship silently."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "proto/pagewire/v1": "pagewire/v1",
    "proto/wire": "pagewire/wire",
    "scheduler_svc": "pagewire/scheduler_svc",
    "worker": "pagewire/worker",
    "client": "pagewire/client",
}
SHIPPED = {".py", ".pyi", ".proto", ".typed", ".cpp", ".h"}
PAGE = "client/gateway/page/"
"""Whole, whatever its files are."""
EXAMPLES = "client/examples/"
"""To read and to copy, not to import."""
LIBRARY = "pagewire/worker/native/libpagewire_native.so"
"""Compiled on the way, where a compiler is."""


@pytest.fixture(scope="module")
def all_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Files in the wheel. tests/run.sh names the wheel; otherwise one is built."""
    path = os.environ.get("PAGEWIRE_TEST_WHEEL")
    if path is None:
        out = tmp_path_factory.mktemp("dist")
        command = [
            sys.executable,
            "-m",
            "build",
            "--quiet",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(out),
            str(ROOT),
        ]
        subprocess.run(command, check=True)
        path = str(next(out.glob("*.whl")))
    with zipfile.ZipFile(path) as wheel:
        return set(wheel.namelist())


@pytest.fixture(scope="module")
def wheel_names(all_names: set[str]) -> set[str]:
    """Metadata left out."""
    return {name for name in all_names if ".dist-info/" not in name}


def test_the_wheel_holds_the_tree_and_nothing_else(wheel_names: set[str]) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split(
        "\n"
    )
    expected = set()
    for name in tracked:
        for folder, package in FOLDERS.items():
            if name.startswith(EXAMPLES):
                continue
            is_shipped = Path(name).suffix in SHIPPED or name.startswith(PAGE)
            if name.startswith(folder + "/") and is_shipped:
                expected.add(package + name.removeprefix(folder))
    assert wheel_names - {LIBRARY} == expected


def test_the_wheel_holds_the_library_where_a_compiler_is(wheel_names: set[str]) -> None:
    has_compiler = any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    assert (LIBRARY in wheel_names) == has_compiler


def test_tests_and_deployment_files_are_not_installed(wheel_names: set[str]) -> None:
    assert all(name.startswith("pagewire/") for name in wheel_names)
    assert not [name for name in wheel_names if "test" in name.split("/")]


def test_the_license_comes_with_the_wheel(all_names: set[str]) -> None:
    assert [name for name in all_names if name.endswith(".dist-info/licenses/deploy/LICENSE")]
