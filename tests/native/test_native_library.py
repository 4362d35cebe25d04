"""Loading the library, its threads, and building it where no compiler is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pagewire.worker.native import library as native
from pagewire.worker.native.library import NativeUnavailable, load_library


def test_torchs_openmp_runtime_is_the_only_one(tmp_path: Path) -> None:
    script = (
        "import torch\n"
        "from pagewire.worker.native.library import load_library, loaded_openmp_runtimes\n"
        "before = loaded_openmp_runtimes()\n"
        "library = load_library(2)\n"
        "assert library.num_threads == 2, library.num_threads\n"
        "assert loaded_openmp_runtimes() == before and len(before) == 1, loaded_openmp_runtimes()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_without_openmp_it_runs_on_one_thread() -> None:
    script = "from pagewire.worker.native.library import load_library\nassert load_library(2).num_threads == 1\n"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_an_absent_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "LIBRARY_FILE", tmp_path / "none.so")
    with pytest.raises(NativeUnavailable, match="without its native library"):
        load_library(1)


def test_a_broken_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(native, "LIBRARY_FILE", broken)
    with pytest.raises(NativeUnavailable, match=r"broken\.so does not load"):
        load_library(1)


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(NativeUnavailable, match="mmx"):
        load_library(1, "mmx")


@pytest.mark.parametrize("compiler", ["/nonexistent/c++", "false"])
def test_without_a_compiler_one_line_says_so(compiler: str) -> None:
    script = Path(native.__file__).parent / "build.py"
    before = native.LIBRARY_FILE.stat()
    done = subprocess.run(
        [sys.executable, str(script)], env=os.environ | {"CXX": compiler}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no native library" in done.stderr
    assert native.LIBRARY_FILE.stat().st_mtime_ns == before.st_mtime_ns
