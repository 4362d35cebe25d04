"""Triton's kernels run in its interpreter here, on the CPU.

Whether a kernel is compiled or interpreted is decided when its module is imported, and Triton's own functions with
Triton itself, which transformers imports too. So `tests/conftest.py` sets the variable before any other file of the
tests is imported.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import recomputation

if os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError("these kernels are tested in Triton's interpreter: TRITON_INTERPRET is not 1")
pytest.importorskip("triton")


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the module's script in `tests/support` prints of each kernel it compiles, in a process where Triton does
    not interpret."""
    script = Path(__file__).parents[3] / "support" / request.module.COMPILED_BY
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(autouse=True)
def _one_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter prepares Triton's language anew for every call of a function inside a kernel, which takes longer
    than most functions do. A kernel's launch has prepared `triton.language`; what `tl.sum` and its kind are written in
    stays prepared once it was."""
    import triton.language as tl
    from triton.runtime import interpreter

    interpreter._patch_lang(tl.sum.fn)

    def call(function: interpreter.InterpretedFunction, *args: object, **kwargs: object) -> object:
        return function.rewrite()(*args, **kwargs)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)


@pytest.fixture
def rows_alone() -> Iterator[None]:
    """See `support.recomputation.rows_alone`."""
    with recomputation.rows_alone():
        yield
