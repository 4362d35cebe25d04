"""The example for llm-d agrees with itself and with the server's own settings; no cluster is at hand."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import yaml

from pagewire.scheduler_svc.settings.exposure import exposure_warnings
from pagewire.scheduler_svc.settings.settings import Settings
from pagewire.scheduler_svc.settings.sources import add_flags, resolve

FILE = Path(__file__).parents[2] / "deploy" / "llm-d.yaml"


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """kind → document."""
    return {part["kind"]: part for part in yaml.safe_load_all(FILE.read_text())}


@pytest.fixture(scope="module")
def pod(parts: dict[str, Any]) -> dict[str, Any]:
    template: dict[str, Any] = parts["Deployment"]["spec"]["template"]
    return template


@pytest.fixture(scope="module")
def settings(pod: dict[str, Any]) -> Settings:
    """As the server reads its arguments, the pod's address put in."""
    command, *flags = pod["spec"]["containers"][0]["args"]
    assert command == "serve"
    parser = argparse.ArgumentParser()
    add_flags(parser)
    given = parser.parse_args([flag.replace("$(POD_IP)", "10.0.0.7") for flag in flags])
    return resolve(vars(given), {}, None).settings


@pytest.fixture(scope="module")
def picker(parts: dict[str, Any]) -> dict[str, Any]:
    """The router's own configuration."""
    (text,) = parts["ConfigMap"]["data"].values()
    read: dict[str, Any] = yaml.safe_load(text)
    assert read["kind"] == "EndpointPickerConfig"
    return read


def port_of(address: str | None) -> int:
    assert address is not None
    return int(address.rpartition(":")[2])


def test_the_pods_arguments_are_settings_and_its_ports_are_theirs(pod: dict[str, Any], settings: Settings) -> None:
    assert settings.vllm_grpc
    ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
    addresses = {"grpc": settings.listen, "kv-events": settings.kv_events, "kv-replay": settings.kv_events_replay}
    assert ports == {name: port_of(address) for name, address in addresses.items()}
    # The three that are open to the cluster, and nothing else.
    *open_ones, meaning = exposure_warnings(settings)
    assert [warning.split(" = ")[0] for warning in open_ones] == ["listen", "kv_events", "kv_events_replay"]
    assert meaning.startswith("insecure is set")


def test_a_pod_has_time_to_drain(pod: dict[str, Any], settings: Settings) -> None:
    assert pod["spec"]["terminationGracePeriodSeconds"] > settings.drain_delay_s + settings.drain_grace_s + 10
    ready = pod["spec"]["containers"][0]["readinessProbe"]
    noticed_s = ready["periodSeconds"] * 3
    assert settings.drain_delay_s > noticed_s  # Kubernetes sees it before requests are refused


def test_probes_ask_the_service(pod: dict[str, Any], settings: Settings) -> None:
    for name in ("startupProbe", "readinessProbe"):
        assert pod["spec"]["containers"][0][name]["grpc"]["port"] == port_of(settings.listen)


def test_the_pool_reaches_the_pods_by_grpc(parts: dict[str, Any], pod: dict[str, Any], settings: Settings) -> None:
    pool = parts["InferencePool"]["spec"]
    assert pool["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert [port["number"] for port in pool["targetPorts"]] == [port_of(settings.listen)]
    assert pool["appProtocol"] == "kubernetes.io/h2c"


def test_the_router_follows_the_pods_events(picker: dict[str, Any], settings: Settings) -> None:
    plugins = {plugin["type"]: plugin.get("parameters", {}) for plugin in picker["plugins"]}
    events = plugins["precise-prefix-cache-producer"]["kvEventsConfig"]
    assert events["podDiscoveryConfig"]["socketPort"] == port_of(settings.kv_events)
    topic = settings.kv_events_topic
    assert topic is not None
    assert topic.startswith(events["topicFilter"])
    kind, host, model = topic.split("@")
    assert (kind, host, model) == ("kv", f"10.0.0.7:{port_of(settings.listen)}", settings.served_model_name)


def test_every_plugin_that_is_named_is_there(picker: dict[str, Any]) -> None:
    declared = {plugin.get("name", plugin["type"]) for plugin in picker["plugins"]}

    def named(part: Any) -> set[str]:
        match part:
            case dict():
                own = {part["pluginRef"]} if "pluginRef" in part else set()
                return own.union(*map(named, part.values()))
            case list():
                return set().union(*map(named, part))
            case _:
                return set()

    assert named(picker) <= declared
