"""Loading the library, its threads, and building it where no compiler is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pagewire.worker.native import library as native
from pagewire.worker.native.library import NativeUnavailable, load_library


def test_it_brings_no_openmp_and_needs_no_torch() -> None:
    script = (
        "from pathlib import Path\n"
        "from pagewire.worker.native.library import load_library\n"
        "assert load_library(2).num_threads == 2\n"
        "loaded = Path('/proc/self/maps').read_text()\n"
        "assert 'libpagewire_native' in loaded and 'omp' not in loaded and 'torch' not in loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_its_threads_sleep_when_there_is_nothing_to_do() -> None:
    """After a region on four threads, a second of the main thread's sleep costs next to no processor time."""
    script = (
        "import time, torch\n"
        "from pagewire.worker.linears.native import NativeLinears\n"
        "from pagewire.worker.native.library import load_library\n"
        "linears = NativeLinears(load_library(4), torch.float32)\n"
        "linear = linears.linear(torch.ones(1024, 256), None)\n"
        "assert torch.equal(linear(torch.ones(1, 256)), torch.full((1, 1024), 256.0))\n"
        "before = time.process_time()\n"
        "time.sleep(1)\n"
        "spent = time.process_time() - before\n"
        "assert spent < 0.2, spent\n"
    )
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
