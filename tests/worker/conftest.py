"""What the worker's tests share: one thread of torch, and checkpoints of every family."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.checkpoints import FAMILIES, Checkpoint, checkpoints_in
from support.decoders import KINDS, decoder_for
from support.torch_threads import torch_threads

from pagewire.worker.model.decoder import Decoder


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors on several threads spend their time in barriers, and tests share their machine."""
    with torch_threads(1):
        yield


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """Builds each family's checkpoint once."""
    return checkpoints_in(tmp_path_factory.mktemp)


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def checkpoint(request: pytest.FixtureRequest, checkpoint_of: Callable[[str], Checkpoint]) -> Checkpoint:
    """Every family in turn."""
    return checkpoint_of(request.param)


@pytest.fixture(scope="session", params=KINDS)
def decoder_of(request: pytest.FixtureRequest) -> Callable[[Checkpoint], Decoder]:
    """Loads each checkpoint once, in fp32, with each kind of kernels."""
    loaded: dict[Path, Decoder] = {}

    def load(checkpoint: Checkpoint) -> Decoder:
        if checkpoint.directory not in loaded:
            loaded[checkpoint.directory] = decoder_for(checkpoint.spec, "float32", request.param)
        return loaded[checkpoint.directory]

    return load
