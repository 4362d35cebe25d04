"""The native library's build: when the package is built, and by hand in a source tree with
`python worker/native/build.py`.

Plain C++17 without any header of Python's or torch's, so that one library serves every version of both. The kernels are
compiled once per instruction set of the processor family; which set runs is decided when the library is loaded. Where
no compiler is found or it fails, one line says so, and the package is built without the library: the worker then uses
torch's operators. CXX names the compiler (default: g++, then clang++, then c++).

Stands on the standard library and setuptools alone, because it runs before anything is installed.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

LIBRARY_NAME = "libpagewire_native.so"
PACKAGE = "pagewire.worker.native"

_SOURCES = Path(__file__).parent
# Without -ffast-math: kernels use infinities and look for NaN.
_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=fast", "-pthread"]
_WARNINGS = ["-Wall", "-Wno-psabi", "-Wno-ignored-attributes"]
_LINK_FLAGS = ["-shared", "-static-libstdc++", "-static-libgcc"]
_AVX2 = ["-mavx2", "-mfma"]
_AVX512 = [*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
_VNNI = [*_AVX512, "-mavx512vnni"]
_X86_LEVELS = {"avx2": _AVX2, "avx512": _AVX512, "avx512vnni": _VNNI, "avx512bf16": [*_VNNI, "-mavx512bf16"]}


class BuildError(Exception):
    """No library: why, in one line."""


def compile_library(target: Path) -> None:
    """Compile into `target`. Raises BuildError; `target` then is as before."""
    if not sys.platform.startswith("linux"):
        raise BuildError(f"the native library is built on Linux only, and this is {sys.platform}")
    compiler = _compiler()
    levels: dict[str, list[str]] = {"base": []}
    if platform.machine() in ("x86_64", "AMD64"):
        levels |= _X86_LEVELS
    with tempfile.TemporaryDirectory(prefix="pagewire-build-") as folder:
        units = {f"level_{name}.o": ["level.cpp", f"-DPW_LEVEL={name}", *flags] for name, flags in levels.items()}
        units |= {f"{unit}.o": [f"{unit}.cpp"] for unit in ("library", "capture", "sampler", "tasks", "thread_pool")}
        commands = [
            [*compiler, *_FLAGS, *_WARNINGS, "-c", str(_SOURCES / source), *flags, "-o", str(Path(folder, name))]
            for name, (source, *flags) in units.items()
        ]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            list(pool.map(_call, commands))
        linked = Path(folder, LIBRARY_NAME)
        _call([*compiler, *_LINK_FLAGS, *(str(Path(folder, name)) for name in units), "-o", str(linked)])
        target.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: a running worker may have the old one mapped.
        beside = target.with_suffix(".new")
        shutil.copyfile(linked, beside)
        beside.replace(target)


def _compiler() -> list[str]:
    named = os.environ.get("CXX")
    if named:
        return shlex.split(named)
    for name in ("g++", "clang++", "c++"):
        if found := shutil.which(name):
            return [found]
    raise BuildError("no C++ compiler (g++, clang++ or c++, or one that CXX names)")


def _call(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]} does not start: {error.strerror}") from error
    if done.returncode != 0:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[-300:])
        raise BuildError(f"{Path(command[0]).name} failed: {first}")


class BuildWithLibrary(build_py):
    """`build_py` that adds the library; in an editable installation it lies beside its sources."""

    def run(self) -> None:
        super().run()
        folder = _SOURCES if self.editable_mode else Path(self.build_lib, *PACKAGE.split("."))
        target = folder / LIBRARY_NAME
        target.unlink(missing_ok=True)  # an older one would be shipped where the compiler fails
        try:
            compile_library(target)
        except BuildError as error:
            print(f"pagewire: built without its native library: {error}", file=sys.stderr)


class PlatformWheel(bdist_wheel):
    """A wheel that holds the library fits this platform and any Python 3; one without it fits every platform."""

    def get_tag(self) -> tuple[str, str, str]:
        tag: tuple[str, str, str] = super().get_tag()
        if not Path(self.bdist_dir, *PACKAGE.split("."), LIBRARY_NAME).exists():
            return tag
        return "py3", "none", self.plat_name.replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    try:
        compile_library(_SOURCES / LIBRARY_NAME)
    except BuildError as error:
        sys.exit(f"no native library: {error}")
