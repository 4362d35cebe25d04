"""The scheduler and a CPU runner in one process, without sockets: the engine's loop as a plain function.

Two plans are in flight, as in the service.
"""

from collections import deque
from dataclasses import dataclass, field

import torch
from support.decoders import ServedModel
from support.scheduler_integrity import check_integrity

from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.scheduler_svc.engine.results import StepRows
from pagewire.scheduler_svc.engine.scheduler import Scheduler
from pagewire.scheduler_svc.engine.steps import PlannedStep
from pagewire.wire.columns import Int32Array, pack
from pagewire.wire.requests import Submit
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.cpu.runner import CpuRunner
from pagewire.worker.slots.columns import SlotLimits

GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, seed=0)


@dataclass
class LocalEngine:
    """Generates with a model under given limits."""

    served: ServedModel
    block_size: int = 16
    num_blocks: int = 256
    max_num_seqs: int = 20
    chunk: int = 512
    max_model_len: int = 1024
    kv_dtype: torch.dtype = torch.float32
    outputs: dict[int, list[int]] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(
            SchedulerConfig(
                max_num_seqs=self.max_num_seqs,
                max_num_batched_tokens=self.max_num_seqs + self.chunk,
                max_prefill_tokens_per_step=self.chunk,
                max_model_len=self.max_model_len,
                max_queued=64,
                max_queued_tokens=1 << 20,
                vocab_size=self.served.decoder.config.vocab_size,
                eos_token_ids=(),
                num_blocks=self.num_blocks,
                block_size=self.block_size,
                enable_prefix_caching=True,
            )
        )
        limits = SlotLimits(
            max_num_seqs=self.max_num_seqs,
            max_model_len=self.max_model_len,
            max_num_batched_tokens=self.max_num_seqs + self.chunk,
            block_size=self.block_size,
            num_blocks=self.num_blocks,
            vocab_size=self.served.decoder.config.vocab_size,
        )
        self.kv = KVCache(self.served.decoder.config, self.num_blocks, self.block_size, self.kv_dtype)
        self.runner = CpuRunner(self.served.model, self.kv, limits)
        self.runner.begin(0)
        self._in_flight: deque[tuple[PlannedStep, Int32Array]] = deque()
        self._step_id = 0

    def submit(
        self, handle: int, prompt: list[int], max_tokens: int, sampling: SamplingParams = GREEDY, priority: int = 0
    ) -> None:
        """Let a sequence wait."""
        request = Submit(
            handle=handle,
            request_id="r",
            prompt=pack(prompt),
            generated=b"",
            sampling=sampling,
            max_tokens=max_tokens,
            stop_token_ids=[],
            ignore_eos=True,
            priority=priority,
            salt=b"",
            max_queue_time_s=None,
        )
        assert self.scheduler.submit(0, request, 0.0) is None
        self.outputs[handle] = []

    def turn(self) -> bool:
        """Plan and run a step, and take in the oldest result once two are in flight; false when nothing moved."""
        step = self.scheduler.plan(0, self._step_id, 0.0)
        if step is not None:
            self._step_id += 1
            for start in step.starts:
                self.cached[start.message.handle] = start.message.cached_tokens
            self._in_flight.append((step, self.runner.run(step.plan).tokens))
        if self._in_flight and (step is None or len(self._in_flight) == 2):
            planned, tokens = self._in_flight.popleft()
            outcome = self.scheduler.apply(planned, StepRows(tokens))
            for handle, token in zip(outcome.handles.tolist(), outcome.tokens.tolist(), strict=True):
                self.outputs[handle].append(token)
            return True
        return step is not None

    def run(self) -> None:
        """Until every sequence has ended."""
        while self.scheduler.has_work:
            assert self.turn(), "sequences are alive and nothing moves"
        check_integrity(self.scheduler)
        assert self.scheduler.blocks.num_used == 0
