"""The Helm chart, rendered by Helm's own library: valid for Kubernetes, in agreement with the server's settings."""

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pagewire.scheduler_svc.settings.settings import Settings
from pagewire.scheduler_svc.settings.sources import resolve

if importlib.util.find_spec("helm_python") is None:
    pytest.skip("helm-python-sdk, Helm as a library, is not installed", allow_module_level=True)

import kubernetes_validate
from helm_python import chart
from helm_python.errors import HelmError

HELM = Path(__file__).parents[2] / "deploy" / "helm"
CASES = sorted(file.stem for file in (HELM / "cases").glob("*.yaml"))
Document = dict[str, Any]


def values_of(case: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((HELM / "cases" / f"{case}.yaml").read_text())
    return read


def render(values: dict[str, Any]) -> dict[str, Document]:
    """kind/name → document."""
    with chart.Chart.load(HELM / "pagewire") as loaded:
        rendered = loaded.render(values, name="llm", namespace="inference")
    documents = [part for text in rendered.values() for part in yaml.safe_load_all(text) if part is not None]
    found = {f"{document['kind']}/{document['metadata']['name']}": document for document in documents}
    assert len(found) == len(documents), "two have one name"
    return found


def pods(documents: dict[str, Document]) -> dict[str, Document]:
    """component → pod template."""
    templates = []
    for document in documents.values():
        if document["kind"] == "Deployment":
            templates.append(document["spec"]["template"])
        if document["kind"] == "LeaderWorkerSet":
            group = document["spec"]["leaderWorkerTemplate"]
            templates += [group["leaderTemplate"], group["workerTemplate"]]
    return {template["metadata"]["labels"]["app.kubernetes.io/component"]: template for template in templates}


def container(pod: Document) -> Document:
    found: Document = pod["spec"]["containers"][0]
    return found


def toml_of(documents: dict[str, Document]) -> list[str]:
    """Lines of pagewire.toml."""
    return str(documents["ConfigMap/llm-pagewire"]["data"]["pagewire.toml"]).splitlines(keepends=True)


def settings_of(documents: dict[str, Document], tmp_path: Path) -> Settings:
    """As the server reads them, metrics left out: they are text here. Certificates and keys are read later."""
    file = tmp_path / "pagewire.toml"
    file.write_text("".join(line for line in toml_of(documents) if not line.startswith("metrics_")))
    environ = {variable["name"]: variable["value"] for variable in container(pods(documents)["server"]).get("env", [])}
    environ.pop("CREDENTIALS_DIRECTORY", None)
    given = {name: value.replace("$(LWS_LEADER_ADDRESS)", "leader.llm") for name, value in environ.items()}
    return resolve({}, given, file).settings


@pytest.mark.parametrize("case", CASES)
def test_every_case_is_valid_for_kubernetes(case: str) -> None:
    documents = render(values_of(case))
    judged = 0
    for document in documents.values():
        if "." not in document["apiVersion"] or document["apiVersion"].split("/")[0].endswith("networking.k8s.io"):
            if document["kind"] in ("HTTPRoute", "GRPCRoute", "InferencePool"):
                continue  # resources of others, whose schemas are not Kubernetes' own
            kubernetes_validate.validate(document, "1.37", strict=True)
            judged += 1
    assert judged >= 6 - (case == "tp8")
    # What a LeaderWorkerSet makes of its templates are pods.
    for pod in pods(documents).values():
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": pod}, "1.37", strict=True
        )


def test_helms_own_linter_finds_nothing_wrong() -> None:
    for case in CASES:
        report = chart.lint(HELM / "pagewire", values_of(case), strict=True)
        assert report["errors"] == []
        assert [message["error"] for message in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("case", CASES)
def test_a_pods_settings_are_the_servers_and_its_ports_are_theirs(case: str, tmp_path: Path) -> None:
    values, documents = values_of(case), render(values_of(case))
    settings = settings_of(documents, tmp_path)
    server = pods(documents)["server"]
    ports = {port["name"]: port["containerPort"] for port in container(server)["ports"]}
    addresses = {"grpc": settings.listen, "health": settings.health_listen}
    if values.get("metrics", {}).get("enabled"):
        assert 'metrics_listen = "0.0.0.0:9400"\n' in toml_of(documents)
        addresses["metrics"] = "0.0.0.0:9400"
    if settings.remote_workers:
        addresses |= {"workers": settings.worker_transport, "distributed": settings.distributed_address}
    assert ports == {name: int(str(address).rpartition(":")[2]) for name, address in addresses.items()}
    # Probes have no TLS: their port is never the one where clients need certificates.
    for probe in ("startupProbe", "readinessProbe"):
        assert container(server)[probe]["grpc"]["port"] == ports["health"]
    assert "livenessProbe" not in container(server)
    mounted = {mount["mountPath"] for mount in container(server)["volumeMounts"]}
    files = (settings.tls_certificate, settings.tls_key, settings.tls_client_ca, settings.api_keys_file)
    assert {str(Path(file).parent) for file in (*files, settings.tenant_limits_file) if file} <= mounted


@pytest.mark.parametrize("case", CASES)
def test_a_pod_has_longer_than_the_drain(case: str, tmp_path: Path) -> None:
    documents = render(values_of(case))
    settings = settings_of(documents, tmp_path)
    drain_s = settings.drain_delay_s + settings.drain_grace_s
    for component in pods(documents).keys() & {"server", "rank"}:
        pod = pods(documents)[component]["spec"]
        waits_s = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        needed_s = waits_s + (drain_s if component == "server" else 0)
        assert pod["terminationGracePeriodSeconds"] >= needed_s + 15
    ready = container(pods(documents)["server"])["readinessProbe"]
    assert settings.drain_delay_s > ready["periodSeconds"] * ready["failureThreshold"]


@pytest.mark.parametrize("case", CASES)
def test_nothing_of_a_pod_can_be_written_or_gained(case: str) -> None:
    for component, pod in pods(render(values_of(case))).items():
        assert pod["spec"]["securityContext"]["runAsNonRoot"], component
        assert pod["spec"]["automountServiceAccountToken"] is False
        for each in pod["spec"]["containers"]:
            assert each["securityContext"] == {
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


def test_one_gpu_is_one_gpu_and_a_cpu_is_none() -> None:
    gpu, cpu = (container(pods(render(values_of(case)))["server"])["resources"]["limits"] for case in ("gpu", "cpu"))
    assert gpu["nvidia.com/gpu"] == "1"
    assert set(cpu) == {"memory"}


def test_eight_ranks_over_two_hosts(tmp_path: Path) -> None:
    documents = render(values_of("tp8"))
    settings = settings_of(documents, tmp_path)
    assert (settings.tensor_parallel_size, settings.remote_workers) == (8, 4)
    assert settings.distributed_address == "leader.llm:29500"
    group = documents["LeaderWorkerSet/llm-pagewire-ranks"]["spec"]["leaderWorkerTemplate"]
    assert (group["size"], group["restartPolicy"]) == (2, "None")
    assert container(group["leaderTemplate"])["resources"]["limits"]["nvidia.com/gpu"] == "4"
    ranks = group["workerTemplate"]["spec"]["containers"]
    for index, rank in enumerate(ranks):
        (line,) = rank["args"]
        # As the shell of the second host's pod has it.
        said = subprocess.run(
            ["sh", "-c", line.replace("exec pagewire", "echo")],
            env={"LWS_WORKER_INDEX": "1", "LWS_LEADER_ADDRESS": "leader.llm"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        assert said[0] == "worker"
        assert said[-2:] == ["--connect=tcp://leader.llm:50055", f"--rank={4 + index}"]
    assert {rank["resources"]["limits"]["nvidia.com/gpu"] for rank in ranks} == {"1"}
    # The server's settings are the ranks' too, and the workers' keys.
    for rank in ranks:
        mounts = {mount["mountPath"] for mount in rank["volumeMounts"]}
        assert {"/etc/pagewire/settings", settings.curve_dir} <= mounts
    (keys,) = [volume for volume in group["workerTemplate"]["spec"]["volumes"] if volume["name"] == "curve"]
    assert keys["secret"]["items"] == [{"key": "worker.json", "path": "worker.json"}]  # and not the engine's


def test_a_group_of_ranks_leaves_the_callers_service_its_name() -> None:
    scaled = {"autoscaling": {"enabled": True}, "metrics": {"enabled": True}, "networkPolicy": {"metricsFrom": [{}]}}
    documents = render(values_of("tp8") | scaled)
    (group,) = [name.partition("/")[2] for name in documents if name.startswith("LeaderWorkerSet/")]
    assert f"Service/{group}" not in documents
    assert documents["ScaledObject/llm-pagewire"]["spec"]["scaleTargetRef"]["name"] == group


def test_five_replicas_behind_envoy() -> None:
    documents = render(values_of("envoy"))
    envoy = yaml.safe_load(documents["ConfigMap/llm-pagewire-envoy"]["data"]["envoy.yaml"])
    (cluster,) = envoy["static_resources"]["clusters"]
    assert cluster["circuit_breakers"]["thresholds"][0]["max_requests"] == 1_000_000
    (policy,) = cluster["load_balancing_policy"]["policies"]
    assert policy["typed_extension_config"]["name"].endswith("client_side_weighted_round_robin")
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    address = endpoint["endpoint"]["address"]["socket_address"]
    assert address == {"address": "llm-pagewire-pods.inference.svc", "port_value": 50051}
    assert documents["Service/llm-pagewire-pods"]["spec"]["clusterIP"] == "None"
    scaled = documents["ScaledObject/llm-pagewire"]["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (5, 12)
    of = '{namespace="inference",pod=~"llm-pagewire-.*"}'
    trigger = scaled["triggers"][0]["metadata"]
    assert trigger["query"] == f"sum(pagewire_sequences_running{of}) + sum(pagewire_sequences_waiting{of})"
    assert trigger["threshold"] == "192"
    down = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert down == {"stabilizationWindowSeconds": 300}
    assert "replicas" not in documents["Deployment/llm-pagewire"]["spec"]  # KEDA's alone to say
    fixed = render(values_of("envoy") | {"autoscaling": {"enabled": False}})
    assert fixed["Deployment/llm-pagewire"]["spec"]["replicas"] == 5
    # Callers go through Envoy: nobody else reaches the service, and nobody but them Envoy.
    grpc, health, metrics = documents["NetworkPolicy/llm-pagewire"]["spec"]["ingress"]
    assert [peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in grpc["from"]] == ["envoy"]
    assert "from" not in health
    assert metrics["ports"] == [{"port": "metrics"}]
    guard = documents["NetworkPolicy/llm-pagewire-envoy"]["spec"]
    assert guard["podSelector"]["matchLabels"].items() <= pods(documents)["envoy"]["metadata"]["labels"].items()
    assert guard["ingress"] == [{"ports": [{"port": "grpc"}], "from": values_of("envoy")["networkPolicy"]["callers"]}]


def test_a_pool_chooses_among_the_servers() -> None:
    documents = render(values_of("pool"))
    pool = documents["InferencePool/llm-pagewire"]["spec"]
    labels = pods(documents)["server"]["metadata"]["labels"]
    assert pool["selector"]["matchLabels"].items() <= labels.items()
    (backend,) = documents["HTTPRoute/llm-pagewire"]["spec"]["rules"][0]["backendRefs"]
    assert (backend["kind"], backend["name"]) == ("InferencePool", "llm-pagewire")


def test_a_gateway_calls_envoy_where_there_is_one_and_else_the_service() -> None:
    values = values_of("envoy")
    plain = values_of("cpu") | {"gateway": values["gateway"]}
    for each, name in ((values, "llm-pagewire-envoy"), (plain, "llm-pagewire")):
        route = render(each)["GRPCRoute/llm-pagewire"]["spec"]
        assert route["rules"][0]["backendRefs"] == [{"name": name, "port": 50051}]


KEYS: Document = {"auth": {"apiKeysSecret": "keys"}}
MUTUAL: Document = {"tls": {"secret": "s", "clientCaSecret": "ca"}}
METRICS: Document = {"metrics": {"enabled": True}}
UNGUARDED: Document = {"networkPolicy": {"enabled": False}}
POOL: Document = {"gateway": {"enabled": True, "inferencePool": {"enabled": True, "endpointPicker": "p"}}}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "nothing says who may call: set auth.apiKeysSecret"),
        ({"insecure": True, "replica": 2}, "additional properties 'replica' not allowed"),
        ({"insecure": True, "device": "tpu"}, "value must be one of 'cpu', 'cuda'"),
        ({"insecure": True, "drain": {"preStopSeconds": 0}}, "minimum: got 0, want 1"),
        ({"insecure": True, "ranks": {"hosts": 2}}, "ranks.hosts > 1 needs curve.secret"),
        ({"insecure": True, "autoscaling": {"enabled": True}}, "autoscaling needs metrics.enabled"),
        ({"insecure": True, "tls": {"clientCaSecret": "ca"}}, "tls.clientCaSecret needs tls.secret"),
        ({"insecure": True, "tls": {"secret": "s"}, "envoy": {"enabled": True}}, "needs envoy.clientSecret"),
        ({"insecure": True, "gateway": {"inferencePool": {"enabled": True}}}, "inferencePool needs endpointPicker"),
        (KEYS | METRICS | UNGUARDED, "metrics.enabled needs networkPolicy.enabled"),
        (KEYS | METRICS | {"settings": {"kv_events": "tcp://*:5556"}}, "settings.kv_events needs insecure"),
        (KEYS | {"settings": {"kv_events_replay": "tcp://*:5559"}}, "settings.kv_events_replay needs insecure"),
        (MUTUAL | {"settings": {"openai": "0.0.0.0:8000"}}, "settings.openai needs auth.apiKeysSecret"),
        (MUTUAL | {"envoy": {"enabled": True, "clientSecret": "c"}}, "envoy needs auth.apiKeysSecret"),
        (KEYS | METRICS | {"autoscaling": {"enabled": True}}, "autoscaling needs networkPolicy.metricsFrom"),
        (KEYS | {"autoscaling": {"minReplicas": 0}}, "minimum: got 0, want 1"),
        (MUTUAL | {"gateway": {"enabled": True}}, "gateway and tls.secret need envoy"),
        (KEYS | POOL | {"envoy": {"enabled": True}}, "both choose the replica"),
        (KEYS | {"tls": {"secret": "s"}, "gateway": {"enabled": True}}, "gateway and tls.secret need envoy"),
        ({"insecure": True, "settings": {"listen": "x:1"}}, "settings.listen is made from other values of the chart"),
    ],
)
def test_values_that_make_no_server_are_refused_by_name(values: dict[str, Any], said: str) -> None:
    with pytest.raises(HelmError) as refused:
        render(values)
    assert said in str(refused.value)


def test_on_the_operators_word_a_closed_network_needs_no_guard() -> None:
    assert "insecure = true\n" in toml_of(render({"insecure": True} | METRICS | UNGUARDED))


def test_every_value_has_its_type() -> None:
    """A value without one would be taken under any name."""
    schema = yaml.safe_load((HELM / "pagewire" / "values.schema.json").read_text())

    def names(part: Any, prefix: str = "") -> set[str]:
        match part:
            case dict() if part:
                return {name for key, value in part.items() for name in names(value, f"{prefix}.{key}")}
            case _:
                return {prefix}

    def typed(part: dict[str, Any], prefix: str = "") -> set[str]:
        inner = part.get("properties", {})
        return {n for key, value in inner.items() for n in typed(value, f"{prefix}.{key}")} if inner else {prefix}

    defaults = yaml.safe_load((HELM / "pagewire" / "values.yaml").read_text())
    assert names(defaults) == typed(schema) - {".global"}
