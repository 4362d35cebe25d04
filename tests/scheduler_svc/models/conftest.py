"""Made model files that a test may change."""

from pathlib import Path

import pytest
from support.model_files import GgufSource, HfDirectory


@pytest.fixture
def hf_directory(tmp_path: Path) -> HfDirectory:
    return HfDirectory(tmp_path / "tiny-qwen3")


@pytest.fixture
def gguf_source() -> GgufSource:
    return GgufSource()
