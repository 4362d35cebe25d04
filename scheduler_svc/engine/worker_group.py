"""The ranks that make one worker: who has said hello, and what they offer together.

Owns the hellos. It does not know sockets, steps or sequences.
"""

from pagewire.scheduler_svc.engine.steps import SchedulerConfig
from pagewire.scheduler_svc.launch import EngineLaunch
from pagewire.wire.plan import WorkerHello
from pagewire.wire.requests import EngineInfo, EngineState


class WorkerMismatchError(Exception):
    """A worker came back and offers something else than the first one did."""


class WorkerGroup:
    """Complete once every rank has said hello."""

    def __init__(self, launch: EngineLaunch) -> None:
        self._launch = launch
        self._hellos: dict[int, WorkerHello] = {}
        self._config: SchedulerConfig | None = None
        self._incarnations: dict[int, int] = {}

    @property
    def is_complete(self) -> bool:
        """Whether every rank waits for plans."""
        return len(self._hellos) == self._launch.world_size

    def __contains__(self, rank: int) -> bool:
        return rank in self._hellos

    def join(self, rank: int, hello: WorkerHello) -> None:
        """A rank is ready."""
        self._hellos[rank] = hello
        self._incarnations[rank] = hello.incarnation

    def leave(self, rank: int) -> bool:
        """A rank is gone; false if it had not come."""
        return self._hellos.pop(rank, None) is not None

    def config(self) -> SchedulerConfig:
        """What the scheduler may count on, from a complete group.

        Raises WorkerMismatchError when it differs from what the first complete group offered: sequences were accepted
        on those terms.
        """
        launch = self._launch
        num_blocks = min(hello.num_blocks for hello in self._hellos.values())
        block_size = self._hellos[0].block_size
        config = SchedulerConfig(
            max_num_seqs=launch.max_num_seqs,
            max_num_batched_tokens=launch.max_num_batched_tokens,
            max_prefill_tokens_per_step=launch.max_prefill_tokens_per_step,
            # One sequence must fit the memory; its last token is sampled but never computed.
            max_model_len=min(launch.max_model_len, num_blocks * block_size + 1),
            max_queued=launch.max_queued,
            vocab_size=launch.vocab_size,
            eos_token_ids=launch.eos_token_ids,
            num_blocks=num_blocks,
            block_size=block_size,
            enable_prefix_caching=launch.enable_prefix_caching,
        )
        if self._config is None:
            self._config = config
        if config != self._config:
            raise WorkerMismatchError(f"the worker came back as another: it allows {config}, at first {self._config}")
        return config

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
            # The supervisor's count, which an engine that was started again itself still has.
            worker_restarts=sum(self._incarnations.values()),
        )
