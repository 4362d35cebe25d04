"""Checks of settings together, whatever their sources: what two must agree on, and whether addresses are well formed.

Every refusal is a SettingsError that names the settings. Nothing here listens or opens a socket.
"""

import importlib.util

from pagewire.scheduler_svc.settings.exposure import check_exposure
from pagewire.scheduler_svc.settings.settings import Settings
from pagewire.scheduler_svc.startup_errors import SettingsError

MAX_UNIX_PATH_BYTES = 107
"""Linux' limit on the path of a Unix socket."""

MAX_TOPIC_BYTES = 512

_LEAST_HANG_TIMEOUT_S = 4.0
"""Signs of life come every second, on a busy machine later."""


def check_agreement(settings: Settings) -> None:
    """Raises SettingsError. Every setting is in its range by itself."""
    _check_device(settings)
    _check_limits(settings)
    _check_network(settings)
    _check_ranks(settings)
    check_exposure(settings)


def _check_device(settings: Settings) -> None:
    if settings.quantization != "none" and settings.device in ("cuda", "sim"):
        raise SettingsError(
            f"quantization = {settings.quantization!r} is for device cpu, and device = {settings.device!r}"
        )


def _check_limits(settings: Settings) -> None:
    if settings.max_num_batched_tokens < settings.max_num_seqs:
        raise SettingsError(
            f"max_num_batched_tokens = {settings.max_num_batched_tokens} is less than max_num_seqs = "
            f"{settings.max_num_seqs}: a step must have room for one token of every running sequence"
        )
    least_hang_s = max(_LEAST_HANG_TIMEOUT_S, 4 * settings.load_interval_s)
    if 0 < settings.hang_timeout_s < least_hang_s:
        raise SettingsError(
            f"hang_timeout_s = {settings.hang_timeout_s:g} must be 0 or at least {least_hang_s:g}: signs of life come "
            f"every second, the engine's every load_interval_s = {settings.load_interval_s:g}"
        )
    if settings.max_n > settings.max_queued:
        raise SettingsError(
            f"max_n = {settings.max_n} is more than max_queued = {settings.max_queued}: a request's outputs wait "
            "together"
        )
    has_tenants = settings.api_keys_file is not None or settings.tls_client_ca is not None
    if has_tenants and settings.max_n > max(1, settings.max_queued // 2):
        raise SettingsError(
            f"max_n = {settings.max_n} is more than half of max_queued = {settings.max_queued}: where there are "
            "tenants one may have half of the queue, and a request's outputs wait together"
        )


def _check_network(settings: Settings) -> None:
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        given, missing = ("tls_certificate", "tls_key") if settings.tls_key is None else ("tls_key", "tls_certificate")
        raise SettingsError(f"{given} is set and {missing} is not: TLS needs both")
    if settings.tls_client_ca is not None and settings.tls_certificate is None:
        raise SettingsError(f"tls_client_ca = {settings.tls_client_ca!r} needs tls_certificate and tls_key")
    if not all(tenants_of(settings.admin_tenants)):
        raise SettingsError(f"admin_tenants = {settings.admin_tenants!r} must be names, separated by commas")
    if settings.tls_client_identity != "common_name" and (settings.tls_client_ca is None or settings.api_keys_file):
        raise SettingsError(
            f"tls_client_identity = {settings.tls_client_identity!r} is of no use "
            + ("with api_keys_file: a key says who calls" if settings.api_keys_file else "without tls_client_ca")
        )
    if settings.tenant_limits_file is not None and settings.api_keys_file is None and settings.tls_client_ca is None:
        raise SettingsError(
            f"tenant_limits_file = {settings.tenant_limits_file!r} needs api_keys_file or tls_client_ca, which say who "
            "a tenant is"
        )
    if settings.max_request_bytes_in_flight < settings.max_message_bytes:
        raise SettingsError(
            f"max_request_bytes_in_flight = {settings.max_request_bytes_in_flight} is less than max_message_bytes = "
            f"{settings.max_message_bytes}: the largest request would never be let in"
        )
    for name, address in (("listen", settings.listen), ("admin_listen", settings.admin_listen)):
        if address or name == "listen":
            check_address(name, address)
    if settings.admin_listen == settings.listen and not settings.listen.endswith(":0"):
        raise SettingsError(f"listen and admin_listen are both {settings.listen!r}; they need an address each")
    if settings.health_listen is not None:
        check_address("health_listen", settings.health_listen)
        if settings.health_listen.endswith(":0"):
            raise SettingsError(f"health_listen = {settings.health_listen!r} needs a port that is not 0")
        if settings.health_listen in (settings.listen, settings.admin_listen):
            raise SettingsError(
                f"health_listen = {settings.health_listen!r} is listen or admin_listen too; it needs an address of its "
                "own"
            )
    if settings.openai is not None:
        check_address("openai", settings.openai)
        if settings.openai.startswith("unix:"):
            raise SettingsError(f"openai = {settings.openai!r} must be host:port")
        if settings.tls_certificate is not None:
            raise SettingsError(
                f"openai = {settings.openai!r} and tls_certificate: which CA to trust is for you to say, to "
                "`pagewire gateway --tls-ca FILE`"
            )
    if settings.metrics_listen is not None:
        check_address("metrics_listen", settings.metrics_listen)
        if settings.metrics_listen.startswith("unix:"):
            raise SettingsError(f"metrics_listen = {settings.metrics_listen!r} must be host:port")
        if importlib.util.find_spec("prometheus_client") is None:
            raise SettingsError(
                f"metrics_listen = {settings.metrics_listen!r} needs prometheus-client: pip install "
                "'pagewire[scheduler]'"
            )
    elif settings.metrics_names != "pagewire":
        raise SettingsError(f"metrics_names = {settings.metrics_names!r} is of no use without metrics_listen")
    if settings.frontends > 1 and settings.listen.startswith("unix:"):
        raise SettingsError(
            f"frontends = {settings.frontends} cannot share {settings.listen!r}: a Unix socket has one owner"
        )
    if settings.vllm_grpc and importlib.util.find_spec("smg_grpc_proto") is None:
        raise SettingsError(
            "vllm_grpc is set and the package smg-grpc-proto, which holds that service's messages, is not installed: "
            "pip install 'pagewire[vllm]'"
        )
    _check_kv_events(settings)
    if settings.worker_transport != "ipc":
        if not settings.worker_transport.startswith("tcp://"):
            raise SettingsError(f"worker_transport = {settings.worker_transport!r} must be ipc or tcp://host:port")
        check_address("worker_transport", settings.worker_transport.removeprefix("tcp://"))
        if settings.worker_transport.endswith(":0"):
            raise SettingsError(f"worker_transport = {settings.worker_transport!r} needs a port that is not 0")
        if settings.curve_dir is None:
            raise SettingsError(
                f"worker_transport = {settings.worker_transport!r} is TCP and needs curve_dir; make keys with "
                "`pagewire serve --make-curve-keys DIR`"
            )
    elif settings.curve_dir is not None:
        raise SettingsError(f"curve_dir = {settings.curve_dir!r} is of no use with worker_transport = 'ipc'")


def _check_kv_events(settings: Settings) -> None:
    for name in ("kv_events_replay", "kv_events_topic"):
        if getattr(settings, name) is not None and settings.kv_events is None:
            raise SettingsError(f"{name} = {getattr(settings, name)!r} is of no use without kv_events")
    if settings.kv_events is None:
        return
    if not settings.enable_prefix_caching:
        raise SettingsError(
            f"kv_events = {settings.kv_events!r} needs enable_prefix_caching: they tell of cached blocks"
        )
    if settings.kv_events_topic is not None and len(settings.kv_events_topic.encode()) > MAX_TOPIC_BYTES:
        raise SettingsError(
            f"kv_events_topic has {len(settings.kv_events_topic.encode())} bytes; at most {MAX_TOPIC_BYTES} may be"
        )
    if settings.kv_events == settings.kv_events_replay:
        raise SettingsError(
            f"kv_events and kv_events_replay are both {settings.kv_events!r}; they need an address each"
        )
    for name, address in (("kv_events", settings.kv_events), ("kv_events_replay", settings.kv_events_replay)):
        if address is None:
            continue
        if address.startswith("ipc://"):
            check_address(name, "unix:" + address.removeprefix("ipc://"))
        elif address.startswith("tcp://"):
            check_address(name, address.removeprefix("tcp://"))
            if address.endswith(":0"):
                raise SettingsError(f"{name} = {address!r} needs a port that is not 0")
        else:
            raise SettingsError(f"{name} = {address!r} must be tcp://host:port, tcp://*:port or ipc:///path")


def _check_ranks(settings: Settings) -> None:
    if settings.distributed_address is not None:
        check_address("distributed_address", settings.distributed_address)
        host, _, port = settings.distributed_address.rpartition(":")
        if settings.distributed_address.startswith("unix:") or host in ("0.0.0.0", "[::]") or port == "0":
            raise SettingsError(
                f"distributed_address = {settings.distributed_address!r} must name a host and a port that other hosts "
                "can reach"
            )
    if settings.remote_workers and settings.remote_workers >= settings.tensor_parallel_size:
        raise SettingsError(
            f"remote_workers = {settings.remote_workers} must be less than tensor_parallel_size = "
            f"{settings.tensor_parallel_size}: rank 0 runs beside the engine"
        )
    if settings.remote_workers and settings.worker_transport == "ipc":
        raise SettingsError(
            f"remote_workers = {settings.remote_workers} needs worker_transport = tcp://host:port, where other hosts "
            "reach the engine"
        )
    if (settings.remote_workers > 0) != (settings.distributed_address is not None):
        raise SettingsError(
            f"remote_workers = {settings.remote_workers} and distributed_address = {settings.distributed_address!r}: "
            "ranks of other hosts need both, and nothing else needs either"
        )


def tenants_of(setting: str) -> tuple[str, ...]:
    """The names in `admin_tenants`."""
    return tuple(name.strip() for name in setting.split(","))


def check_address(name: str, address: str) -> None:
    """Raise SettingsError unless `address` is host:port or unix:/absolute/path."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path.startswith("/"):
            raise SettingsError(f"{name} = {address!r}: the path of a Unix socket must be absolute")
        if len(path.encode()) > MAX_UNIX_PATH_BYTES:
            raise SettingsError(
                f"{name} = {address!r}: the path is {len(path.encode())} bytes long, the limit is {MAX_UNIX_PATH_BYTES}"
            )
        return
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise SettingsError(f"{name} = {address!r} must be host:port with a port of 0 to 65535, or unix:/path")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise SettingsError(f"{name} = {address!r}: an IPv6 address stands in brackets, such as [::1]:50051")
