"""What the whole suite shares: the fast tests run first, so that a plain mistake shows within seconds."""

import signal

import pytest

FOLDERS_LAST = ("equality", "service", "deploy")
"""Whole engines and whole services: seconds each."""


def pytest_configure() -> None:
    """A suite started in the background of a shell ignores SIGINT and hands that on to the commands it interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order by how long a kind of test takes; within a kind, as collected."""

    def slowness(item: pytest.Item) -> int:
        if item.get_closest_marker("slow") is not None:
            return 2
        return 1 if any(f"tests/{folder}/" in item.nodeid for folder in FOLDERS_LAST) else 0

    items.sort(key=slowness)
