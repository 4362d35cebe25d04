"""What the frontend's tests share."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from support.tiny_tokenizer import make_spec

from pagewire.wire.model import ModelSpec


@pytest.fixture(scope="session")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A model with a tokenizer and a chat template."""
    return make_spec(Path(tmp_path_factory.mktemp("model")))


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, None]], None]:
    """Runs a test's coroutine to its end, within a limit."""

    def run_it(test: Coroutine[Any, Any, None]) -> None:
        async def limited() -> None:
            async with asyncio.timeout(60):
                await test

        asyncio.run(limited())

    return run_it
