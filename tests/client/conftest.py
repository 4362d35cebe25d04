"""A scripted service for each test, and clients of it that wait next to nothing between tries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.scripted_service import ScriptedService

from pagewire.client import Client, RetryPolicy


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    with ScriptedService() as running:
        yield running


@pytest.fixture
def policy() -> RetryPolicy:
    return RetryPolicy(max_attempts=3, initial_backoff_s=0.001, max_backoff_s=0.002)


@pytest.fixture
def client(service: ScriptedService, policy: RetryPolicy) -> Iterator[Client]:
    with Client(service.address, retry=policy) as connected:
        yield connected
