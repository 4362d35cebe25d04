"""Network settings: where a server listens, who may come in, how much they may send, and who follows it.

What is open to other machines by them, and what two must agree on, `exposure` and `checks` know.
"""

from typing import Annotated, Literal

import msgspec

from pagewire.scheduler_svc.settings.field import MAX_INT32, Setting


class NetworkSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Those of the group `network`, for `Settings` alone, which checks their ranges."""

    listen: Annotated[
        str,
        Setting("network", "Address of the service: host:port, port 0 for a free one, or unix:/path."),
    ] = "127.0.0.1:50051"
    admin_listen: Annotated[
        str, Setting("network", "Address of AdminService, in the same forms; empty turns it off.")
    ] = "127.0.0.1:50052"
    health_listen: Annotated[
        str | None,
        Setting(
            "network",
            "Address of grpc.health.v1 alone, host:port or unix:/path, without TLS or credentials: for probes, which "
            "have no certificates. It tells whether the server takes requests and nothing else.",
            unset="none; listen and admin_listen serve health in any case",
        ),
    ] = None
    openai: Annotated[
        str | None,
        Setting(
            "network",
            "Address of OpenAI's endpoints over HTTP, host:port, port 0 for a free one; a process of its own. API keys "
            "are its callers'.",
            unset="none",
        ),
    ] = None
    metrics_listen: Annotated[
        str | None,
        Setting(
            "network",
            "Address of Prometheus' metrics over HTTP, at /metrics: host:port, port 0 for a free one. They tell "
            "tenants' names and have no keys.",
            unset="none",
        ),
    ] = None
    metrics_names: Annotated[
        Literal["pagewire", "vllm"],
        Setting(
            "network",
            "What metrics are called: pagewire_* alone, or vllm: the same and vLLM's names beside them, for dashboards "
            "and endpoint pickers that read those.",
        ),
    ] = "pagewire"
    frontends: Annotated[
        int, Setting("network", "Frontend processes that share the port.", unit="processes", limits=(1, 64))
    ] = 1
    max_message_bytes: Annotated[
        int, Setting("network", "Largest request message.", unit="bytes", limits=(1024, 64 * 1024 * 1024))
    ] = 4 * 1024 * 1024
    max_request_bytes_in_flight: Annotated[
        int,
        Setting(
            "network",
            "Most bytes of requests that a frontend has received and whose prompts are not token ids yet; more are "
            "refused, to be sent again. With an API keys file one tenant may have half of it. At least "
            "max_message_bytes.",
            unit="bytes",
            limits=(1024, 2**40),
        ),
    ] = 64 * 1024 * 1024
    stream_buffer_tokens: Annotated[
        int,
        Setting(
            "network",
            "Tokens of one stream that may wait for a slow reader. Beyond them its sequences are paused, which gives "
            "their memory to others, until the reader has taken half.",
            unit="tokens",
            limits=(16, MAX_INT32),
        ),
    ] = 4096
    slow_reader_timeout_s: Annotated[
        float,
        Setting(
            "network",
            "A paused stream whose client takes nothing for so long ends with RESOURCE_EXHAUSTED.",
            unit="s",
            limits=(0.5, 86_400),
        ),
    ] = 120.0
    max_connections: Annotated[
        int,
        Setting(
            "network",
            "Most connections of a frontend; one more is closed as it comes. Fewer where the process may not have so "
            "many descriptors.",
            unit="connections",
            limits=(1, 1024 * 1024),
        ),
    ] = 4096
    max_connection_idle_s: Annotated[
        float,
        Setting(
            "network",
            "A connection without calls for so long is closed, which clients do not notice; 0: never.",
            unit="s",
            limits=(0, 1_000_000),
        ),
    ] = 3600.0
    max_connection_age_s: Annotated[
        float,
        Setting(
            "network",
            "A connection of this age (10 % more or less, drawn) takes no more calls, and its client makes another; so "
            "balancers spread clients anew and revoked certificates run out. 0: any age.",
            unit="s",
            limits=(0, 1_000_000),
        ),
    ] = 0.0
    max_connection_age_grace_s: Annotated[
        float,
        Setting(
            "network",
            "How long calls may go on that run on a connection of that age; then they end with UNAVAILABLE.",
            unit="s",
            limits=(0, 1_000_000),
        ),
    ] = 600.0
    tls_certificate: Annotated[
        str | None, Setting("network", "PEM file with the certificate chain.", unset="no TLS")
    ] = None
    tls_key: Annotated[str | None, Setting("network", "PEM file with the certificate's key.", unset="no TLS")] = None
    tls_client_ca: Annotated[
        str | None,
        Setting("network", "PEM file with a CA; clients must then present a certificate of it.", unset="any client"),
    ] = None
    api_keys_file: Annotated[
        str | None,
        Setting("network", "File with lines of tenant:key; requests must then carry a key.", unset="no keys"),
    ] = None
    tls_client_identity: Annotated[
        Literal["common_name", "uri", "dns"],
        Setting(
            "network",
            "What of a client's certificate is its tenant, where tls_client_ca is set and api_keys_file is not: the "
            "subject's common name, or its one alternative name of this kind.",
        ),
    ] = "common_name"
    admin_tenants: Annotated[
        str,
        Setting(
            "network",
            "Tenants, separated by commas, that may call AdminService, where API keys or client certificates say who "
            "calls.",
        ),
    ] = "admin"
    tenant_limits_file: Annotated[
        str | None,
        Setting(
            "network",
            "JSON file with what each tenant may ask of a frontend: priority, requests at once, requests and tokens a "
            "minute.",
            unset="no limits",
        ),
    ] = None
    insecure: Annotated[
        bool,
        Setting(
            "network",
            "Let addresses be open to other machines although nothing says who may come in: no API keys and no client "
            "certificates. For a network that is closed by other means.",
        ),
    ] = False
    vllm_grpc: Annotated[
        bool,
        Setting(
            "network",
            "Serve vLLM's gRPC service, vllm.grpc.engine.VllmEngine, on the same address, for gateways that speak it; "
            "needs pagewire[vllm].",
        ),
    ] = False
    orca_load_reports: Annotated[
        bool,
        Setting(
            "network",
            "Say in the trailer of every call how busy the server is, for balancers that follow ORCA "
            "(endpoint-load-metrics-bin).",
        ),
    ] = True
    otlp_endpoint: Annotated[
        str | None,
        Setting(
            "network",
            "URL of an OpenTelemetry collector, http://host:4317 or https://host:4317 (OTLP over gRPC), that gets a "
            "trace of every request; needs pagewire[otel]. The standard variables OTEL_* hold.",
            unset="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT, else no traces",
        ),
    ] = None
    kv_events: Annotated[
        str | None,
        Setting(
            "network",
            "ZeroMQ address where the engine publishes what becomes of cached blocks, in vLLM's format: "
            "tcp://host:port, tcp://*:port or ipc:///path. It tells token ids and has neither keys nor encryption.",
            unset="nothing is published",
        ),
    ] = None
    kv_events_replay: Annotated[
        str | None,
        Setting(
            "network",
            "ZeroMQ address where followers ask for events that they missed, in the same forms.",
            unset="nothing is replayed",
        ),
    ] = None
    kv_events_topic: Annotated[
        str | None,
        Setting("network", "Topic of the events.", unset="kv@HOST@MODEL, with the machine's name and the model's"),
    ] = None
    worker_transport: Annotated[
        str,
        Setting(
            "network",
            "Where the engine listens for workers: ipc, a socket in the runtime directory, or tcp://host:port, which "
            "needs --curve-dir.",
        ),
    ] = "ipc"
    curve_dir: Annotated[
        str | None,
        Setting("network", "Folder with CURVE keys, as written by --make-curve-keys.", unset="none, ipc alone"),
    ] = None
