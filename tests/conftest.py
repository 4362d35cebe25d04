"""What the whole suite shares: the fast tests run first, so that a plain mistake shows within seconds; and Triton's
kernels are interpreted, which whoever imports Triton first decides for the process (transformers does)."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

FOLDERS_LAST = ("equality", "service", "deploy")
"""Whole engines and whole services: seconds each."""
COMPILING = Path(__file__).parent / "device"
"""Tests that run Triton's kernels on a device; where nothing else is asked for, kernels are compiled."""

# Here and not in a hook: the other conftest.py of the folders that are asked for are imported before any hook runs.
INTERPRETS_BY_DEFAULT = "TRITON_INTERPRET" not in os.environ
os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Before any test is imported."""
    # How long one example may take says something about the machine, which other programs share.
    with contextlib.suppress(ImportError):  # a GPU machine may be without it
        from hypothesis import settings

        settings.register_profile("pagewire", deadline=None)
        settings.load_profile("pagewire")
    # A suite started in the background of a shell ignores SIGINT and hands that on to the commands it interrupts; one
    # started by nohup does so with SIGHUP.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    asked = [config.invocation_params.dir / arg.partition("::")[0] for arg in config.args]
    if INTERPRETS_BY_DEFAULT and all(path.resolve().is_relative_to(COMPILING) for path in asked):
        del os.environ["TRITON_INTERPRET"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order by how long a kind of test takes; within a kind, as collected."""

    def slowness(item: pytest.Item) -> int:
        if item.get_closest_marker("slow") is not None:
            return 2
        return 1 if any(f"tests/{folder}/" in item.nodeid for folder in FOLDERS_LAST) else 0

    items.sort(key=slowness)
