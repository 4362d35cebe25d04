"""Every setting of the server, each with its meaning, unit, range and default, in one frozen struct.

The struct is the only place where a setting is declared: flags, environment variables, the TOML file, `--help` and
`--print-config` are all made from it (`sources`). It owns the checks that need two settings at once. It knows
neither where a value came from nor what a model is.
"""

from typing import Annotated, Literal

import msgspec

from pagewire.scheduler_svc.settings.addresses import check_address, is_loopback
from pagewire.scheduler_svc.settings.field import Setting, setting_fields
from pagewire.scheduler_svc.startup_errors import SettingsError
from pagewire.wire.launch import AttentionBackendName, CpuKernelKind, Quantization

MAX_INT32 = 2**31 - 1
_LEAST_HANG_TIMEOUT_S = 4.0
"""Signs of life come every second, on a busy machine later."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings. Building one checks every range and what two settings must agree on; raises SettingsError."""

    model: Annotated[
        str,
        Setting(
            "model",
            "What to serve: a directory in Hugging Face layout, a .gguf file, a hub id such as Qwen/Qwen3-0.6B with an "
            "optional @revision, smollm2-135m, or random:qwen3-0.6b (also 1.7b, 4b, 8b, 14b, 32b; an optional @seed).",
        ),
    ] = "smollm2-135m"
    served_model_name: Annotated[
        str | None, Setting("model", "The name that requests use.", unset="made from --model")
    ] = None
    device: Annotated[
        Literal["auto", "cpu", "cuda", "sim"],
        Setting("model", "Where the model runs; sim runs none and answers at once. auto is cpu."),
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "bfloat16", "float32"],
        Setting(
            "model", "Type of the weights in memory. auto is bfloat16 where the hardware multiplies it, else float32."
        ),
    ] = "auto"
    quantization: Annotated[
        Quantization,
        Setting(
            "model",
            "int8 rounds the weights to 8 bits as they load, and activations as they come: a CPU then is about 1.5 "
            "times as fast, and answers differ slightly. On device cpu only.",
        ),
    ] = "none"
    max_model_len: Annotated[
        int | None,
        Setting(
            "model",
            "Most tokens of prompt and output together.",
            unit="tokens",
            unset="the model's own limit, on a CPU at most 8192",
            low=1,
            high=MAX_INT32,
        ),
    ] = None
    cache_dir: Annotated[
        str | None,
        Setting(
            "model",
            "Folder for fetched models; the hub's own cache stays where HF_HOME says.",
            unset="$XDG_CACHE_HOME/pagewire",
        ),
    ] = None

    listen: Annotated[
        str,
        Setting(
            "network",
            "Address of the service: host:port, port 0 for a free one, or unix:/path.",
        ),
    ] = "127.0.0.1:50051"
    admin_listen: Annotated[
        str, Setting("network", "Address of AdminService, in the same forms; empty turns it off.")
    ] = "127.0.0.1:50052"
    frontends: Annotated[
        int, Setting("network", "Frontend processes that share the port.", unit="processes", low=1, high=64)
    ] = 1
    max_message_bytes: Annotated[
        int, Setting("network", "Largest request message.", unit="bytes", low=1024, high=64 * 1024 * 1024)
    ] = 4 * 1024 * 1024
    stream_buffer_tokens: Annotated[
        int,
        Setting(
            "network",
            "Most tokens of one stream that wait for a slow reader before the stream is ended.",
            unit="tokens",
            low=16,
            high=MAX_INT32,
        ),
    ] = 4096
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

    max_num_seqs: Annotated[
        int, Setting("scheduling", "Most sequences that run at once.", unit="sequences", low=1, high=4096)
    ] = 64
    max_num_batched_tokens: Annotated[
        int,
        Setting(
            "scheduling", "Token budget of one step; at least max_num_seqs.", unit="tokens", low=1, high=1024 * 1024
        ),
    ] = 1024
    max_prefill_tokens_per_step: Annotated[
        int,
        Setting(
            "scheduling",
            "Most prompt tokens in a step while sequences decode, so that a long prompt does not stall them.",
            unit="tokens",
            low=1,
            high=1024 * 1024,
        ),
    ] = 256
    max_queued: Annotated[
        int,
        Setting("scheduling", "Most sequences that wait; more are refused.", unit="sequences", low=1, high=1024 * 1024),
    ] = 1024
    max_n: Annotated[int, Setting("scheduling", "Most outputs of one request.", unit="outputs", low=1, high=1024)] = 16
    block_size: Annotated[
        int | None,
        Setting(
            "scheduling",
            "Tokens in a KV block.",
            unit="tokens",
            unset="what the attention backend does best with, 32 on a CPU",
            low=1,
            high=1024,
        ),
    ] = None
    kv_cache_bytes: Annotated[
        int | None,
        Setting(
            "scheduling",
            "Memory for KV, such as 512M or 4GiB.",
            unit="bytes",
            unset="the worker's choice",
            low=1024,
            high=2**50,
        ),
    ] = None
    enable_prefix_caching: Annotated[
        bool, Setting("scheduling", "Keep the KV of ended sequences for prompts that begin alike.")
    ] = True
    pipeline_depth: Annotated[int, Setting("scheduling", "Step plans in flight.", unit="plans", low=1, high=2)] = 2

    num_threads: Annotated[
        int | None,
        Setting(
            "worker", "Threads of one step.", unit="threads", unset="every core the process may use", low=1, high=1024
        ),
    ] = None
    cpu_kernels: Annotated[
        CpuKernelKind,
        Setting(
            "worker",
            "What computes attention, norms and sampling on a CPU: the package's own library (native), torch's "
            "operators, or (auto) the library where it was built and fits the model.",
        ),
    ] = "auto"
    attention_backend: Annotated[
        AttentionBackendName,
        Setting(
            "worker",
            "What computes attention; refused where the device does not have it. auto is the best that the device has "
            "and that suits the model. On a CPU it comes with --cpu-kernels. `pagewire doctor` shows what there is.",
        ),
    ] = "auto"
    gpu_memory_utilization: Annotated[
        float,
        Setting(
            "worker",
            "On a GPU: share of its memory that may be in use in a worst step, by whomever; the KV cache takes what "
            "the rest leaves. Without effect where kv_cache_bytes is set.",
            low=0.01,
            high=1.0,
        ),
    ] = 0.9
    enforce_eager: Annotated[
        bool,
        Setting(
            "worker", "On a GPU: record no CUDA graphs, which saves memory and time to start and makes steps slower."
        ),
    ] = False
    sim_step_us: Annotated[
        int, Setting("worker", "How long a step of the sim device takes.", unit="µs", low=0, high=10_000_000)
    ] = 0

    tensor_parallel_size: Annotated[
        int,
        Setting(
            "parallel",
            "Ranks that share the model, a process each: one per GPU, or on a CPU one per group of cores. Divides the "
            "model's attention heads and KV heads.",
            unit="ranks",
            low=1,
            high=64,
        ),
    ] = 1
    remote_workers: Annotated[
        int,
        Setting(
            "parallel",
            "Ranks, the last ones, that `pagewire worker` starts on other hosts; needs a worker_transport of tcp.",
            unit="ranks",
            low=0,
            high=63,
        ),
    ] = 0
    distributed_address: Annotated[
        str | None,
        Setting(
            "parallel",
            "host:port where rank 0 listens for the ranks of other hosts (torch.distributed's address). It has neither "
            "keys nor encryption, so it belongs on a network of one's own.",
            unset="none: the ranks of one host meet in the runtime directory",
        ),
    ] = None

    drain_delay_s: Annotated[
        float,
        Setting(
            "operation", "On draining: time between NOT_SERVING and refusing requests.", unit="s", low=0, high=3600
        ),
    ] = 0.0
    drain_grace_s: Annotated[
        float, Setting("operation", "On draining: time that running streams get.", unit="s", low=0, high=3600)
    ] = 30.0
    load_interval_s: Annotated[
        float, Setting("operation", "Time between the engine's load reports.", unit="s", low=0.05, high=60)
    ] = 0.5
    max_restarts: Annotated[
        int,
        Setting(
            "operation",
            "Most restarts in a row of one process; it counts anew once the process has served for a minute.",
            unit="restarts",
            low=0,
            high=1000,
        ),
    ] = 3
    hang_timeout_s: Annotated[
        float,
        Setting(
            "operation",
            "A process that makes no progress for so long is ended and started again: workers that hold a step, the "
            "engine or a frontend whose loop stands still. Longer than the longest step; 0: never.",
            unit="s",
            low=0,
            high=86_400,
        ),
    ] = 300.0
    runtime_dir: Annotated[
        str | None,
        Setting(
            "operation",
            "Folder for sockets, mode 0700.",
            unset="a new one in the temporary folder, removed at exit",
        ),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Setting("operation", "Least level that is logged to stderr.")
    ] = "info"

    def __post_init__(self) -> None:
        for name, field in setting_fields(type(self)).items():
            field.check(getattr(self, name))
        self._check_limits()
        self._check_network()
        self._check_ranks()

    def _check_limits(self) -> None:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise SettingsError(
                f"max_num_batched_tokens = {self.max_num_batched_tokens} is less than max_num_seqs = "
                f"{self.max_num_seqs}: a step must have room for one token of every running sequence"
            )
        least_hang_s = max(_LEAST_HANG_TIMEOUT_S, 4 * self.load_interval_s)
        if 0 < self.hang_timeout_s < least_hang_s:
            raise SettingsError(
                f"hang_timeout_s = {self.hang_timeout_s:g} must be 0 or at least {least_hang_s:g}: signs of life come "
                f"every second, the engine's every load_interval_s = {self.load_interval_s:g}"
            )
        if self.max_n > self.max_queued:
            raise SettingsError(
                f"max_n = {self.max_n} is more than max_queued = {self.max_queued}: a request's outputs wait together"
            )

    def _check_network(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, missing = ("tls_certificate", "tls_key") if self.tls_key is None else ("tls_key", "tls_certificate")
            raise SettingsError(f"{given} is set and {missing} is not: TLS needs both")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise SettingsError(f"tls_client_ca = {self.tls_client_ca!r} needs tls_certificate and tls_key")
        for name, address in (("listen", self.listen), ("admin_listen", self.admin_listen)):
            if address or name == "listen":
                check_address(name, address)
        if self.admin_listen == self.listen and not self.listen.endswith(":0"):
            raise SettingsError(f"listen and admin_listen are both {self.listen!r}; they need an address each")
        if self.frontends > 1 and self.listen.startswith("unix:"):
            raise SettingsError(
                f"frontends = {self.frontends} cannot share {self.listen!r}: a Unix socket has one owner"
            )
        if self.worker_transport != "ipc":
            if not self.worker_transport.startswith("tcp://"):
                raise SettingsError(f"worker_transport = {self.worker_transport!r} must be ipc or tcp://host:port")
            check_address("worker_transport", self.worker_transport.removeprefix("tcp://"))
            if self.worker_transport.endswith(":0"):
                raise SettingsError(f"worker_transport = {self.worker_transport!r} needs a port that is not 0")
            if self.curve_dir is None:
                raise SettingsError(
                    f"worker_transport = {self.worker_transport!r} is TCP and needs curve_dir; make keys with "
                    "`pagewire serve --make-curve-keys DIR`"
                )
        elif self.curve_dir is not None:
            raise SettingsError(f"curve_dir = {self.curve_dir!r} is of no use with worker_transport = 'ipc'")

    def _check_ranks(self) -> None:
        if self.distributed_address is not None:
            check_address("distributed_address", self.distributed_address)
            host, _, port = self.distributed_address.rpartition(":")
            if self.distributed_address.startswith("unix:") or host in ("0.0.0.0", "[::]") or port == "0":
                raise SettingsError(
                    f"distributed_address = {self.distributed_address!r} must name a host and a port that other hosts "
                    "can reach"
                )
        if self.remote_workers and self.remote_workers >= self.tensor_parallel_size:
            raise SettingsError(
                f"remote_workers = {self.remote_workers} must be less than tensor_parallel_size = "
                f"{self.tensor_parallel_size}: rank 0 runs beside the engine"
            )
        if self.remote_workers and self.worker_transport == "ipc":
            raise SettingsError(
                f"remote_workers = {self.remote_workers} needs worker_transport = tcp://host:port, where other hosts "
                "reach the engine"
            )
        if (self.remote_workers > 0) != (self.distributed_address is not None):
            raise SettingsError(
                f"remote_workers = {self.remote_workers} and distributed_address = {self.distributed_address!r}: "
                "ranks of other hosts need both, and nothing else needs either"
            )


def exposure_warnings(settings: Settings) -> list[str]:
    """What is open to the network without TLS or keys."""
    found = []
    if not is_loopback(settings.listen):
        missing = [
            word
            for word, value in (("TLS", settings.tls_certificate), ("API keys", settings.api_keys_file))
            if value is None
        ]
        if len(missing) == 2 or (missing == ["API keys"] and settings.tls_client_ca is None):
            found.append(f"listen = {settings.listen!r} is open to other machines, without {' or '.join(missing)}")
        elif missing == ["TLS"]:
            found.append(f"listen = {settings.listen!r} is open to other machines, and API keys travel without TLS")
    if settings.admin_listen and not is_loopback(settings.admin_listen):
        found.append(f"admin_listen = {settings.admin_listen!r} is open to other machines: they can drain this server")
    if settings.distributed_address is not None and not is_loopback(settings.distributed_address):
        found.append(
            f"distributed_address = {settings.distributed_address!r} is open to other machines: torch.distributed has "
            "neither keys nor encryption"
        )
    return found
