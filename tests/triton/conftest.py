"""Triton's kernels run in its interpreter here, on the CPU.

Whether a kernel is compiled or interpreted is decided when its module is imported, and Triton's own functions with
Triton itself. So the variable is set when this file is collected, before any test runs; nothing else in the suite
imports Triton.
"""

import os
import sys

import pytest
import torch

if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError("triton was imported before tests/triton could choose its interpreter")
os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The interpreter works on small arrays, for which waking a second thread costs more than it saves."""
    torch.set_num_threads(1)
