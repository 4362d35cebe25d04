"""The Dockerfile and the compose file agree with the project and with the server's settings; `prove_dockerfile.py` runs
the one's lines in a clean root, which takes minutes and root."""

import argparse
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from pagewire.scheduler_svc.settings.settings import Settings
from pagewire.scheduler_svc.settings.sources import add_flags, resolve

DEPLOY = Path(__file__).parents[2] / "deploy"
PROJECT = DEPLOY.parent
USER = "10001:10001"


@pytest.fixture(scope="module")
def prover() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prove_dockerfile", DEPLOY / "prove_dockerfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def stages(prover: ModuleType) -> dict[str, Any]:
    found: dict[str, Any] = prover.read_stages((DEPLOY / "Dockerfile").read_text())[0]
    return found


def lines_of(stages: dict[str, Any], name: str) -> list[tuple[str, str]]:
    """Of a stage and of those that it stands on."""
    stage = stages[name]
    before = lines_of(stages, stage.base) if stage.base in stages else []
    return [*before, *stage.lines]


def test_an_image_runs_as_its_user_and_says_whether_it_is_healthy(prover: ModuleType, stages: dict[str, Any]) -> None:
    assert prover.IMAGES.keys() == {"scheduler", "worker-cpu", "worker-cuda"}
    for name in prover.IMAGES:
        last: dict[str, str] = dict(lines_of(stages, name))
        assert last["USER"] == USER, name
        assert json.loads(last["ENTRYPOINT"]) == ["pagewire"]
        assert json.loads(last["HEALTHCHECK"].split(" CMD ")[1])[:2] == ["pagewire", "health"]


def test_the_base_is_pinned_and_known_to_the_prover(prover: ModuleType) -> None:
    arguments = prover.read_stages((DEPLOY / "Dockerfile").read_text())[1]
    assert re.fullmatch(r"debian:\d+\.\d+-slim", arguments["BASE"])
    assert any(arguments["BASE"].startswith(release) for release in prover.RELEASES)


def test_the_scheduler_has_no_torch_and_every_image_what_it_needs(stages: dict[str, Any]) -> None:
    extras = {
        name: re.search(r"\*\.whl\)\[([a-z,]+)\]", text)
        for name, stage in stages.items()
        for word, text in stage.lines
        if word == "RUN" and "pip install" in text
    }
    named = {name: set(found[1].split(",")) for name, found in extras.items() if found is not None}
    assert named == {
        "install-scheduler": {"scheduler", "gateway", "vllm"},
        "install-worker-cpu": {"all"},
        "install-worker-cuda": {"all", "cuda"},
    }


def test_what_is_copied_is_there_and_let_into_the_build(stages: dict[str, Any]) -> None:
    let_in = {line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for stage in stages.values():
        for word, text in stage.lines:
            if word == "COPY" and not text.startswith("--from="):
                copied |= set(text.split()[:-1])
    assert copied == let_in
    assert all((PROJECT / name).exists() for name in copied)


def test_the_prover_refuses_what_it_does_not_know(prover: ModuleType, tmp_path: Path) -> None:
    builder = prover.Builder(tmp_path, tmp_path, [])
    with pytest.raises(prover.DockerfileError, match="does not know VOLUME"):
        builder._step(prover.Image(tmp_path), "VOLUME", "/data")
    with pytest.raises(prover.DockerfileError, match="RUN before FROM"):
        prover.read_stages("RUN true\nFROM debian:12 AS x\n")


def test_lines_go_on_over_comments_and_ends(prover: ModuleType) -> None:
    stages, _ = prover.read_stages("FROM a AS x\nRUN one \\\n# between\n && two\nFROM x AS y\nCOPY --from=x /a /b\n")
    assert [(word, text.split()) for word, text in stages["x"].lines] == [("RUN", ["one", "&&", "two"])]
    assert (stages["y"].base, stages["y"].needs) == ("x", {"x"})


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return read


def settings_of(service: dict[str, Any]) -> Settings:
    """As the server reads a service's arguments, addresses as they are where nothing is set."""
    command, *flags = (re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in service["command"])
    parser = argparse.ArgumentParser()
    if command == "worker":
        parser.add_argument("--rank", type=int)
        parser.add_argument("--connect", dest="worker_transport")
    add_flags(parser, workers_alone=command == "worker")
    given = {name: value for name, value in vars(parser.parse_args(flags)).items() if name != "rank"}
    return resolve(given, {}, None).settings


def test_services_run_stages_of_the_dockerfile_with_nothing_to_write_or_gain(
    services: dict[str, Any], stages: dict[str, Any]
) -> None:
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"]
        assert service["build"]["target"] in stages
        assert service["image"].endswith(f":{service['build']['target']}")


def test_the_server_has_keys_and_time_to_drain(services: dict[str, Any]) -> None:
    settings = settings_of(services["pagewire"])
    assert settings.api_keys_file == "/run/secrets/api-keys"
    assert services["pagewire"]["stop_grace_period"] == "60s"
    assert settings.drain_delay_s + settings.drain_grace_s + 10 <= 60


def test_both_hosts_have_the_same_settings(services: dict[str, Any]) -> None:
    server, rank = settings_of(services["server"]), settings_of(services["rank"])
    assert (server.tensor_parallel_size, server.remote_workers) == (2, 1)
    for name in ("model", "tensor_parallel_size", "remote_workers", "distributed_address", "curve_dir"):
        assert getattr(server, name) == getattr(rank, name), name
    assert server.worker_transport.rpartition(":")[2] == rank.worker_transport.rpartition(":")[2]
