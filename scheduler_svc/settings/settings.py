"""Settings: every one of the server, each with its meaning, unit, range and default, in one frozen struct.

The struct is the only place where a setting is declared: flags, environment variables, the TOML file, `--help` and
`--print-config` are all made from it (`sources`). It knows neither where a value came from nor what a model is.
"""

from typing import Annotated, Literal

import msgspec

from pagewire.scheduler_svc.settings.field import Setting, setting_fields
from pagewire.wire.launch import AttentionBackendName, CpuKernelKind, Quantization

MAX_INT32 = 2**31 - 1


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings. Building one checks every range; raises SettingsError. What two must agree on, `checks` knows."""

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
        Setting(
            "model",
            "Where the model runs; sim runs none and answers at once. auto is cuda where this machine has an NVIDIA "
            "device that the installed torch and Triton can use, else cpu.",
        ),
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
            limits=(1, MAX_INT32),
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
        Setting("network", "Address of the service: host:port, port 0 for a free one, or unix:/path."),
    ] = "127.0.0.1:50051"
    admin_listen: Annotated[
        str, Setting("network", "Address of AdminService, in the same forms; empty turns it off.")
    ] = "127.0.0.1:50052"
    openai: Annotated[
        str | None,
        Setting(
            "network",
            "Address of OpenAI's endpoints over HTTP, host:port, port 0 for a free one; a process of its own. API keys "
            "are its callers'.",
            unset="none",
        ),
    ] = None
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

    max_num_seqs: Annotated[
        int,
        Setting(
            "scheduling",
            "Most sequences that run at once; 256 by default on device cuda.",
            unit="sequences",
            limits=(1, 4096),
        ),
    ] = 64
    max_num_batched_tokens: Annotated[
        int,
        Setting(
            "scheduling",
            "Token budget of one step; at least max_num_seqs. 8192 by default on device cuda.",
            unit="tokens",
            limits=(1, 1024 * 1024),
        ),
    ] = 1024
    max_prefill_tokens_per_step: Annotated[
        int,
        Setting(
            "scheduling",
            "Most prompt tokens in a step while sequences decode, so that a long prompt does not stall them; 2048 by "
            "default on device cuda.",
            unit="tokens",
            limits=(1, 1024 * 1024),
        ),
    ] = 256
    max_queued: Annotated[
        int,
        Setting(
            "scheduling",
            "Most sequences that wait; more are refused. Where there are tenants, half of it for one.",
            unit="sequences",
            limits=(1, 1024 * 1024),
        ),
    ] = 1024
    max_queued_tokens: Annotated[
        int,
        Setting(
            "scheduling",
            "Most prompt tokens of all sequences that wait; what would exceed it is refused, but where nothing waits. "
            "Where there are tenants, half of it for one. An id is 4 bytes of the engine's memory.",
            unit="tokens",
            limits=(1, 2**40),
        ),
    ] = 8 * 1024 * 1024
    max_n: Annotated[int, Setting("scheduling", "Most outputs of one request.", unit="outputs", limits=(1, 1024))] = 16
    block_size: Annotated[
        int | None,
        Setting(
            "scheduling",
            "Tokens in a KV block.",
            unit="tokens",
            unset="what the attention backend does best with, 32 on a CPU",
            limits=(1, 1024),
        ),
    ] = None
    kv_cache_bytes: Annotated[
        int | None,
        Setting(
            "scheduling",
            "Memory for KV, such as 512M or 4GiB.",
            unit="bytes",
            unset="the worker's choice",
            limits=(1024, 2**50),
        ),
    ] = None
    enable_prefix_caching: Annotated[
        bool, Setting("scheduling", "Keep the KV of ended sequences for prompts that begin alike.")
    ] = True
    pipeline_depth: Annotated[int, Setting("scheduling", "Step plans in flight.", unit="plans", limits=(1, 2))] = 2

    num_threads: Annotated[
        int | None,
        Setting(
            "worker", "Threads of one step.", unit="threads", unset="every core the process may use", limits=(1, 1024)
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
            limits=(0.01, 1.0),
        ),
    ] = 0.9
    enforce_eager: Annotated[
        bool,
        Setting(
            "worker", "On a GPU: record no CUDA graphs, which saves memory and time to start and makes steps slower."
        ),
    ] = False
    sim_step_us: Annotated[
        int, Setting("worker", "How long a step of the sim device takes.", unit="µs", limits=(0, 10_000_000))
    ] = 0

    tensor_parallel_size: Annotated[
        int,
        Setting(
            "parallel",
            "Ranks that share the model, a process each: one per GPU, or on a CPU one per group of cores. Divides the "
            "model's attention heads and KV heads.",
            unit="ranks",
            limits=(1, 64),
        ),
    ] = 1
    remote_workers: Annotated[
        int,
        Setting(
            "parallel",
            "Ranks, the last ones, that `pagewire worker` starts on other hosts; needs a worker_transport of tcp.",
            unit="ranks",
            limits=(0, 63),
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
            "operation", "On draining: time between NOT_SERVING and refusing requests.", unit="s", limits=(0, 3600)
        ),
    ] = 0.0
    drain_grace_s: Annotated[
        float, Setting("operation", "On draining: time that running streams get.", unit="s", limits=(0, 3600))
    ] = 30.0
    load_interval_s: Annotated[
        float, Setting("operation", "Time between the engine's load reports.", unit="s", limits=(0.05, 60))
    ] = 0.5
    max_restarts: Annotated[
        int,
        Setting(
            "operation",
            "Most restarts in a row of one process; it counts anew once the process has served: the engine and "
            "workers a step, any of them for a second.",
            unit="restarts",
            limits=(0, 1000),
        ),
    ] = 12
    hang_timeout_s: Annotated[
        float,
        Setting(
            "operation",
            "A process that makes no progress for so long is ended and started again: workers that hold a step, the "
            "engine or a frontend whose loop stands still. Workers sooner, where their steps before took less. Longer "
            "than the longest step; 0: never.",
            unit="s",
            limits=(0, 86_400),
        ),
    ] = 300.0
    runtime_dir: Annotated[
        str | None,
        Setting(
            "operation", "Folder for sockets, mode 0700.", unset="a new one in the temporary folder, removed at exit"
        ),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Setting("operation", "Least level that is logged to stderr.")
    ] = "info"

    def __post_init__(self) -> None:
        for name, field in setting_fields(type(self)).items():
            field.check(getattr(self, name))
