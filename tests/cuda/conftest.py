"""Fixtures of the CUDA worker's tests, which run on the CPU."""

from collections.abc import Iterator

import pytest
from support.torch_threads import torch_threads


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors on several threads spend their time in barriers, and tests share their machine."""
    with torch_threads(1):
        yield
