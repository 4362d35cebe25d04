"""The library at every instruction set of this machine."""

from collections.abc import Iterator

import pytest

from pagewire.worker.native.library import LEVELS, LIBRARY_FILE, NativeLibrary, NativeUnavailable, load_library

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
