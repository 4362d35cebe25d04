"""The library at every instruction set of this machine."""

from collections.abc import Iterator

import pytest

from pagewire.worker.native.library import LIBRARY_FILE, NativeLibrary, NativeUnavailable, load_library

LEVELS = ("avx512bf16", "avx512vnni", "avx512", "avx2", "base")
"""Instruction sets it may be compiled for, best first; `base` is what every processor of the family has."""

if not LIBRARY_FILE.exists():
    pytest.skip("built without the native library", allow_module_level=True)


@pytest.fixture(params=LEVELS)
def library(request: pytest.FixtureRequest) -> Iterator[NativeLibrary]:
    """On two threads. The instruction set is the process's, so the best is chosen again afterwards."""
    try:
        yield load_library(2, request.param)
    except NativeUnavailable as error:
        pytest.skip(str(error))
    finally:
        load_library(2)
