"""Launches: what a worker is started with, and how the processes reach each other.

The supervisor writes one JSON file per child into the runtime directory (mode 0700); a child reads it once, and the
result is frozen and passed down. Unknown keys are errors.
"""

import hashlib
from typing import Literal

import msgspec

from pagewire.wire.log_lines import LogFormat
from pagewire.wire.model import DType, ModelSpec

Device = Literal["cpu", "cuda", "sim"]
CpuKernelKind = Literal["auto", "native", "torch"]
AttentionBackendName = Literal[
    "auto", "flash-attention-3", "flash-attention-2", "triton", "paged-native", "paged-torch"
]
"""Of CUDA devices the first three, best first; of CPUs the others, which come with their cpu_kernels."""


Quantization = Literal["none", "int8"]


class CurveKeys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """CURVE keys in Z85 text: the engine's public key, and this side's own pair."""

    server_public: str
    own_public: str
    own_secret: str
    peers_public: tuple[str, ...] = ()
    """On the binding side: the only client keys it lets in."""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A ZeroMQ address: `ipc://` inside the runtime directory, or `tcp://` between hosts with CURVE keys."""

    address: str
    curve: CurveKeys | None = None
    password: str | None = None
    """Of an `ipc://` address: what a peer shows to be let in, new with each run of a server. It stands in launch files,
    as this does; the socket's name alone is no permission."""

    def __post_init__(self) -> None:
        if not self.address.startswith(("ipc://", "tcp://")):
            raise ValueError(f"endpoint address {self.address!r} must start with ipc:// or tcp://")
        if self.address.startswith("tcp://") and self.curve is None:
            raise ValueError(f"endpoint address {self.address!r} is TCP and needs CURVE keys")


UNKNOWN_INCARNATION = -1
"""Of a rank that no supervisor of the server started: it takes the group's, when it meets rank 0."""


class RankGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the ranks of one model come together. See `pagewire.worker.parallel.rendezvous`."""

    store: str
    """Where they meet: `file://` and a path that only this user can reach, or `tcp://host:port`, where rank 0 listens
    for ranks of several hosts."""
    num_local_ranks: int
    """Ranks that share this host's cores and memory, this one among them."""
    local_rank: int = 0
    """This one's number among them: the GPU it takes."""
    join_timeout_s: float = 600.0
    """How long a rank waits for the others to have loaded."""

    def __post_init__(self) -> None:
        if not self.store.startswith(("file://", "tcp://")):
            raise ValueError(f"store {self.store!r} must start with file:// or tcp://")


class WorkerLaunch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a worker process needs to know."""

    model: ModelSpec
    device: Device
    dtype: DType
    rank: int
    world_size: int
    incarnation: int
    engine: Endpoint
    max_num_seqs: int
    """Number of slots."""
    max_model_len: int
    max_num_batched_tokens: int
    block_size: int | None
    """Tokens in a KV block; none for what the attention backend does best with."""
    kv_cache_bytes: int | None
    """Memory for KV; none leaves it to the worker. It never takes more than max_num_seqs × max_model_len needs."""
    earlier_num_blocks: int | None = None
    """Of a worker that is started again: the KV blocks that it had when it first served. It takes as many where they
    fit the memory that is left, and else as many as fit, even if they no longer hold max_model_len."""
    num_threads: int | None
    """Threads of one step; none for every core the process may use."""
    cpu_kernels: CpuKernelKind = "auto"
    """What computes attention, norms and sampling on a CPU: the package's own library, torch's operators, or (auto)
    the library where it is there and fits the model."""
    attention_backend: AttentionBackendName = "auto"
    """Refused where the device does not have it. auto is the best that it has and that suits the model."""
    gpu_memory_utilization: float = 0.9
    """On CUDA devices: the share of the device's memory that may be in use in a worst step, whoever uses it; the KV
    cache takes what the rest leaves. Without effect where kv_cache_bytes is given."""
    enforce_eager: bool = False
    """On CUDA devices: record no graphs; every step is launched one operation after the other."""
    exact_continuation: bool = False
    """Serve only so that what is computed again comes to the same bits; on CUDA devices by our own exact kernels."""
    quantization: Quantization = "none"
    """Of the linears; int8 on the device cpu alone."""
    sim_step_us: int = 0
    """How long the `sim` device pretends a step takes."""
    log_format: LogFormat = "text"
    group: RankGroup | None = None
    """Needed where world_size is more than 1, other than on the `sim` device."""


_A_RANKS_OWN = (
    "model",
    "rank",
    "incarnation",
    "engine",
    "kv_cache_bytes",
    "earlier_num_blocks",
    "num_threads",
    "log_format",
    "group",
)
"""What ranks of one group may be told differently."""


def agreed_terms(launch: WorkerLaunch) -> dict[str, str]:
    """What must be equal on every rank of a group, by name, as text: the model, apart from where its files are, and
    everything else that a step's result or a plan's meaning depends on."""
    model = launch.model
    terms: dict[str, object] = {
        name: value for name, value in msgspec.to_builtins(launch).items() if name not in _A_RANKS_OWN
    }
    terms |= {
        "model.weights_format": model.weights_format,
        "model.weights_digest": model.weights_digest,
        "model.random_seed": model.random_seed,
        "model.eos_token_ids": list(model.eos_token_ids),
    }
    terms |= {f"model.{name}": value for name, value in msgspec.to_builtins(model.decoder).items()}
    return {name: msgspec.json.encode(value).decode() for name, value in terms.items()}


def terms_digest(launch: WorkerLaunch) -> str:
    """The same in short."""
    return hashlib.sha256(msgspec.json.encode(agreed_terms(launch), order="sorted")).hexdigest()
