"""What a worker is started with, and how the processes reach each other.

The supervisor writes one JSON file per child into the runtime directory (mode 0700); a child reads it once, and the
result is frozen and passed down. Unknown keys are errors.
"""

from typing import Literal

import msgspec

from pagewire.wire.model import DType, ModelSpec

Device = Literal["cpu", "cuda", "sim"]
CpuKernelKind = Literal["auto", "native", "torch"]


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

    def __post_init__(self) -> None:
        if not self.address.startswith(("ipc://", "tcp://")):
            raise ValueError(f"endpoint address {self.address!r} must start with ipc:// or tcp://")
        if self.address.startswith("tcp://") and self.curve is None:
            raise ValueError(f"endpoint address {self.address!r} is TCP and needs CURVE keys")


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
    block_size: int
    kv_cache_bytes: int | None
    """Memory for KV; none leaves it to the worker. It never takes more than max_num_seqs × max_model_len needs."""
    num_threads: int | None
    """Threads of one step; none for every core the process may use."""
    cpu_kernels: CpuKernelKind = "auto"
    """What computes attention, norms and sampling on a CPU: the package's own library, torch's operators, or (auto)
    the library where it is there and fits the model."""
    sim_step_us: int = 0
    """How long the `sim` device pretends a step takes."""
