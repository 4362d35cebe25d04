"""Settings: every one of the server, each with its meaning, unit, range and default, in one frozen struct.

The struct is the only place where a setting is declared, those of the network in the struct that it extends: flags,
environment variables, the TOML file, `--help` and `--print-config` are all made from it (`sources`). It knows neither
where a value came from nor what a model is.
"""

from typing import Annotated, Literal

from pagewire.scheduler_svc.settings.field import MAX_INT32, Setting, setting_fields
from pagewire.scheduler_svc.settings.network import NetworkSettings
from pagewire.wire.launch import AttentionBackendName, CpuKernelKind, Quantization


class Settings(NetworkSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
    exact_continuation: Annotated[
        bool,
        Setting(
            "worker",
            "Do not serve unless what is computed again after a loss or a preemption comes to the same bits, as with "
            "the native CPU kernels it always does. On a GPU this takes slower kernels, whose sums do not depend on "
            "what is computed together.",
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
        Literal["debug", "info", "warning", "error"],
        Setting("operation", "Least level that is logged to stderr; at info every request has a line when it ends."),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"],
        Setting("operation", "How every process logs to stderr: lines of text, or a JSON object a line."),
    ] = "text"

    def __post_init__(self) -> None:
        for name, field in setting_fields(type(self)).items():
            field.check(getattr(self, name))
