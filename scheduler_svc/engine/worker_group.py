"""The worker group: the ranks that make one worker, who has said hello, and what they offer together.

Owns the hellos. It does not know sockets, steps or sequences.
"""

import msgspec

from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.scheduler_svc.launch import EngineLaunch
from pagewire.wire.plan import DeviceMemory, WorkerHello
from pagewire.wire.requests import EngineInfo, EngineState

_LEAST_CRASHES = 3
_MAX_BLOCK_SIZE = 1 << 16


class WorkerGroup:
    """Complete once every rank of one start has said hello: ranks begin and end together, because those that are left
    of a group cannot take another rank in."""

    def __init__(self, launch: EngineLaunch) -> None:
        self._launch = launch
        self._hellos: dict[int, WorkerHello] = {}
        self._config: SchedulerConfig | None = None
        self._incarnations: dict[int, int] = {}

    @property
    def is_complete(self) -> bool:
        """Whether every rank waits for plans."""
        starts = {hello.incarnation for hello in self._hellos.values()}
        return len(self._hellos) == self._launch.world_size and len(starts) == 1

    @property
    def incarnation(self) -> int:
        """The supervisor's count of the start that they are of, which an engine that was started again itself still
        has; 0 before any came."""
        return max(self._incarnations.values(), default=0)

    def __contains__(self, rank: int) -> bool:
        return rank in self._hellos

    def refusal(self, hello: WorkerHello) -> str | None:
        """Why a rank cannot be one of this group; none where it can."""
        launch = self._launch
        if hello.rank >= launch.world_size:
            return f"rank {hello.rank} came, of {launch.world_size} ranks from 0"
        for name in ("vocab_size", "max_num_seqs", "max_model_len"):
            if getattr(hello, name) != getattr(launch, name):
                return f"rank {hello.rank} has {name} {getattr(hello, name)}; this engine has {getattr(launch, name)}"
        if not 1 <= hello.block_size <= _MAX_BLOCK_SIZE:
            return f"rank {hello.rank} has blocks of {hello.block_size} tokens; the range is 1 to {_MAX_BLOCK_SIZE}"
        most = launch.max_num_seqs * -(-launch.max_model_len // hello.block_size)
        if not 1 <= hello.num_blocks <= most:
            return f"rank {hello.rank} offers {hello.num_blocks} blocks; the range is 1 to {most}, all that can be used"
        for other in self._hellos.values():
            if other.rank == hello.rank or other.incarnation != hello.incarnation:
                continue
            if (other.terms_digest, other.block_size) != (hello.terms_digest, hello.block_size):
                return f"ranks {other.rank} and {hello.rank} do not run the same model in the same way"
        return None

    def join(self, rank: int, hello: WorkerHello) -> None:
        """A rank is ready."""
        self._hellos[rank] = hello
        self._incarnations[rank] = hello.incarnation

    def leave(self, rank: int) -> None:
        """A rank is gone, if it had come."""
        self._hellos.pop(rank, None)

    def config(self) -> SchedulerConfig:
        """What the scheduler may count on, from a complete group: the least that any rank offers. A group that comes
        back may offer another number of blocks than the one before it, where the machine's memory is another by now."""
        launch = self._launch
        num_blocks = min(hello.num_blocks for hello in self._hellos.values())
        block_size = self._hellos[0].block_size
        self._config = SchedulerConfig(
            max_num_seqs=launch.max_num_seqs,
            max_num_batched_tokens=launch.max_num_batched_tokens,
            max_prefill_tokens_per_step=launch.max_prefill_tokens_per_step,
            # One sequence must fit the memory; its last token is sampled but never computed.
            max_model_len=min(launch.max_model_len, num_blocks * block_size + 1),
            max_queued=launch.max_queued,
            max_queued_tokens=launch.max_queued_tokens,
            vocab_size=launch.vocab_size,
            eos_token_ids=launch.eos_token_ids,
            num_blocks=num_blocks,
            block_size=block_size,
            enable_prefix_caching=launch.enable_prefix_caching,
            # One less than the end that ends the server, for one from outside; never so few that the first is blamed.
            max_crashes_in_row=max(_LEAST_CRASHES, launch.max_restarts - 1),
        )
        return self._config

    def info(self, state: EngineState) -> EngineInfo:
        """What frontends should know."""
        first, hellos, config = self._hellos.get(0), self._hellos.values(), self._config
        return EngineInfo(
            state=state,
            num_blocks=config.num_blocks if config else 0,
            block_size=config.block_size if config else 0,
            max_model_len=config.max_model_len if config else self._launch.max_model_len,
            weights_bytes=sum(hello.weights_bytes for hello in hellos),
            kv_cache_bytes=sum(hello.kv_cache_bytes for hello in hellos),
            attention_backend=first.attention_backend if first else "",
            linear_backend=first.linear_backend if first else "",
            versions=first.versions if first else {},
            device_memory=_together([hello.device_memory for hello in hellos if hello.device_memory is not None]),
            # Three ranks and more add up their parts in an order that depends on how many rows there are.
            recomputes_exactly=first is not None and first.recomputes_exactly and self._launch.world_size <= 2,
            worker_restarts=self.incarnation,
        )


def _together(memories: list[DeviceMemory]) -> DeviceMemory | None:
    """The sum of every field; none where no rank has a device."""
    if not memories:
        return None
    return DeviceMemory(*(sum(parts) for parts in zip(*map(msgspec.structs.astuple, memories), strict=True)))
