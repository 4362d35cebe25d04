"""Launches: what the supervisor starts an engine and a frontend with.

One JSON file per child in the runtime directory (mode 0700), read once; the result is frozen and passed down. Unknown
keys are errors. A worker's launch is in `pagewire.wire.launch`, because another package reads it.
"""

from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from pagewire.scheduler_svc.startup_errors import StartupError
from pagewire.wire.codec import WireError, decode_json
from pagewire.wire.launch import Device, Endpoint
from pagewire.wire.log_lines import LogFormat
from pagewire.wire.model import DType, ModelSpec

LogLevel = Literal["debug", "info", "warning", "error"]
IdentityKind = Literal["common_name", "uri", "dns"]
Launch = TypeVar("Launch", "EngineLaunch", "FrontendLaunch")


class KvEventsLaunch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the engine publishes KV events: ZeroMQ addresses that it binds."""

    addresses: tuple[str, ...]
    """At least one."""
    replay_addresses: tuple[str, ...]
    topic: str


class EngineLaunch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the engine process needs to know. Block count and block size come from the worker's hello."""

    incarnation: int
    frontends: Endpoint
    """Bound by the engine: frontends connect."""
    workers: Endpoint
    """Bound by the engine: ranks connect."""
    world_size: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    """Token budget of one step; at least max_num_seqs."""
    max_prefill_tokens_per_step: int
    """Most prefill tokens in a step while sequences decode."""
    max_queued: int
    max_queued_tokens: int
    """Prompt tokens of all sequences that wait; half of it, and of max_queued, for one tenant."""
    enable_prefix_caching: bool
    pipeline_depth: int
    """Plans in flight: 1 or 2."""
    load_interval_s: float
    """Time between `Load` messages."""
    hang_timeout_s: float
    """Workers that hold a step for so long without an answer are reported as stuck; 0: never."""
    step_slack_s: float
    """They are reported sooner where the steps before say so, after three times what comparable ones took and this."""
    max_restarts: int = 12
    """Of workers in a row without a step between them; more end the server."""
    kv_events: KvEventsLaunch | None = None
    measures: bool = False
    """Count what metrics are made of, and tell the supervisor with each `Load`."""
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PEM files. With a client CA, clients must present a certificate of it."""

    certificate: str
    key: str
    client_ca: str | None = None


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of a listener's connections."""

    max_connections: int = 4096
    """More are closed as they come."""
    max_idle_s: float = 0.0
    """Without calls; 0: any time."""
    max_age_s: float = 0.0
    """0: any age."""
    age_grace_s: float = 0.0
    """What running calls get beyond that age."""


class FrontendLaunch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a frontend process needs to know."""

    index: int
    """0 … F-1; frontend 0 also serves AdminService."""
    incarnation: int
    engine: Endpoint
    model: ModelSpec
    device: Device
    dtype: DType
    listen: str
    """host:port, port 0 for a free one, or unix:/path."""
    admin_listen: str | None
    health_listen: str | None = None
    """Health alone, for probes."""
    reuse_port: bool
    """Other frontends listen on the same port."""
    max_num_seqs: int
    """Most sequences that the engine runs at once."""
    max_model_len: int
    max_n: int
    max_queued: int
    max_message_bytes: int
    max_request_bytes_in_flight: int
    """Of all requests whose prompts are not token ids yet; at least max_message_bytes."""
    stream_buffer_tokens: int
    """Most tokens of one stream that wait for a slow reader before its sequences are paused."""
    slow_reader_timeout_s: float
    """A paused stream whose client takes nothing for so long is ended with RESOURCE_EXHAUSTED."""
    engine_timeout_s: float
    """The engine counts as lost to health after this long without a `Load`."""
    vllm_grpc: bool = False
    """Serve vllm.grpc.engine.VllmEngine too."""
    orca_load_reports: bool = True
    """Whether calls say in their trailers how busy the server is."""
    otlp_endpoint: str | None = None
    """URL of the collector that gets traces, if any are made."""
    kv_events: KvEventsLaunch | None = None
    """Where the engine publishes them for frontends, if it does."""
    connections: ConnectionLimits = ConnectionLimits()
    """Of the public listener; of the admin listener all but the number."""
    tls: TlsFiles | None = None
    api_keys_file: str | None = None
    """Lines of `tenant:key`. With it a key says who calls, and without it a client's certificate, where there must be
    one; where neither does, there is one anonymous tenant, which may call AdminService too."""
    client_identity: IdentityKind = "common_name"
    """Of a client's certificate: what its tenant is."""
    admin_tenants: tuple[str, ...] = ("admin",)
    """Who may call AdminService."""
    tenant_limits_file: str | None = None
    """JSON: a tenant's name, or `*`, to its limits."""
    settings: dict[str, str] = {}
    """For GetServerInfo, secrets left out."""
    started_unix_s: float
    """When the supervisor started."""
    measures: bool = False
    """Count what metrics are made of, and tell the supervisor every second."""
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"


def read_launch(path: Path, kind: type[Launch]) -> Launch:
    """A child's launch file. Raises StartupError."""
    try:
        return decode_json(path.read_bytes(), kind)
    except OSError as error:
        raise StartupError(f"cannot read the launch file {path}: {error.strerror}") from error
    except WireError as error:
        raise StartupError(f"the launch file {path} is wrong: {error}") from error
