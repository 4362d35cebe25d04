"""The `sim` device: answers every plan at once with deterministic tokens, for control-plane benchmarks and fault tests.

It keeps the same slot state and refuses the same plans as a real device, but has no model, no KV and no tensors, and
imports no torch. Rows that ask for logits to be changed or reported fail, with a reason: frontends refuse such requests
before they get here, and nothing is ignored whatever they do. A token depends on seed and position alone, so a sequence
continues the same after a preemption, a restart of the worker or a new epoch:

    token = the (hash(seed, position) mod n)-th of the n ids it may answer

which are the first nine tenths of the vocabulary without the model's end-of-sequence ids: tokenizers keep padding rows
and added special tokens at the end, which would not turn into text, and a sequence should end where its limit says.
"""

import time
from collections.abc import Callable

import numpy as np

from pagewire.wire.columns import Int32Array, pack
from pagewire.wire.launch import WorkerLaunch
from pagewire.wire.model import DecoderConfig, DType
from pagewire.wire.plan import NO_TOKEN, ChunkLogprobs, RowFailure, StepPlan
from pagewire.worker.immediate import ImmediateRunner, Sampled
from pagewire.worker.launch import LaunchError, LoadedDevice, hello_of, slot_limits
from pagewire.worker.sampling.uniform import hash_positions
from pagewire.worker.slots.columns import SlotLimits
from pagewire.worker.slots.state import ScoredRows, Slots, Step

DEFAULT_NUM_BLOCKS = 1 << 17
"""Blocks without `kv_cache_bytes`, where every sequence at full length needs no fewer: they cost the worker nothing,
but the engine keeps a record of each."""


DEFAULT_BLOCK_SIZE = 32

_NO_LOGITS = "device sim has no logits that could be changed or reported"


def sim_num_blocks(launch: WorkerLaunch, block_size: int) -> int:
    """As many blocks as `kv_cache_bytes` would buy on a real device, else plenty, or as many as there were where it is
    started again; never more than can be used.

    Raises ValueError where one sequence of max_model_len does not fit.
    """
    per_seq = -(-launch.max_model_len // block_size)
    most = launch.max_num_seqs * per_seq
    if launch.earlier_num_blocks is not None:
        return max(1, min(most, launch.earlier_num_blocks))
    if launch.kv_cache_bytes is None:
        return min(most, max(per_seq, DEFAULT_NUM_BLOCKS))
    block_bytes = _block_bytes(launch.model.decoder, block_size, launch.dtype)
    num_blocks = launch.kv_cache_bytes // block_bytes
    if num_blocks < per_seq:
        raise ValueError(
            f"kv_cache_bytes is {launch.kv_cache_bytes}, which is {num_blocks} blocks; one sequence of max_model_len "
            f"{launch.max_model_len} needs {per_seq}, that is {per_seq * block_bytes} bytes"
        )
    return min(most, num_blocks)


def _block_bytes(config: DecoderConfig, block_size: int, dtype: DType) -> int:
    value_bytes = 2 if dtype == "bfloat16" else 4
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * block_size * value_bytes


class SimRunner:
    """A `pagewire.worker.immediate.PlanRunner` without a device."""

    def __init__(
        self,
        limits: SlotLimits,
        *,
        eos_token_ids: tuple[int, ...],
        step_us: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._slots = Slots(limits)
        self._seeds = self._slots.columns.sampling["seed"]
        most = max(1, limits.vocab_size * 9 // 10)
        self._skipped = sorted({token for token in eos_token_ids if 0 <= token < most})
        self._num_ids = np.uint64(most - len(self._skipped))
        if self._num_ids == 0:
            raise ValueError(
                f"a vocabulary of {limits.vocab_size} with {len(self._skipped)} end-of-sequence ids has no id left"
            )
        self._step_s = step_us / 1e6
        self._clock = clock
        self._sleep = sleep

    def begin(self, epoch: int) -> None:
        """Open an epoch: every slot is empty."""
        self._slots.begin(epoch)

    def end_epoch(self) -> None:
        """Refuse every plan until the next `begin`."""
        self._slots.end_epoch()

    def run(self, plan: StepPlan) -> Sampled:
        """One token per row that samples, in the plan's order, `step_us` after the call. Raises PlanError."""
        deadline = self._clock() + self._step_s
        step = self._slots.apply(plan)
        seeds = self._seeds[step.sample_slots]
        tokens = (hash_positions(seeds, step.sample_positions) % self._num_ids).astype(np.int32)
        for skipped in self._skipped:
            tokens += tokens >= skipped
        remaining = deadline - self._clock()
        if self._step_s and remaining > 0:
            self._sleep(remaining)
        sampled = Sampled(tokens)
        if step.special_rows or step.scored:
            sampled = self._without_logits(step, tokens)
        self._slots.record(step, tokens)
        return sampled

    def _without_logits(self, step: Step, tokens: Int32Array) -> Sampled:
        tokens[step.special_rows] = NO_TOKEN
        failures = [RowFailure(row, _NO_LOGITS, by_request=True) for row in step.special_rows]
        return Sampled(tokens, failures, prompt_logprobs=[self._no_scores(scored) for scored in step.scored])

    def _no_scores(self, scored: ScoredRows) -> ChunkLogprobs:
        num_tokens = len(scored.tokens)
        num_ids = num_tokens * (self._slots.special[scored.slot].prompt_logprobs or 0)
        return ChunkLogprobs(
            scored.chunk,
            scored.position,
            np.full(num_tokens, np.nan, "<f4").tobytes(),
            pack(np.full(num_ids, NO_TOKEN)),
            np.full(num_ids, np.nan, "<f4").tobytes(),
        )


def load_sim(launch: WorkerLaunch) -> LoadedDevice:
    """Raises LaunchError."""
    if launch.attention_backend != "auto":
        raise LaunchError(f"attention_backend is {launch.attention_backend}; device sim has no attention")
    block_size = launch.block_size or DEFAULT_BLOCK_SIZE
    try:
        limits = slot_limits(launch, block_size, sim_num_blocks(launch, block_size))
        runner = SimRunner(limits, eos_token_ids=launch.model.eos_token_ids, step_us=launch.sim_step_us)
    except ValueError as error:
        raise LaunchError(str(error)) from error
    hello = hello_of(
        launch,
        limits,
        weights_bytes=0,
        kv_cache_bytes=0,
        attention_backend="none",
        linear_backend="none",
        recomputes_exactly=True,
        libraries=("numpy",),
    )
    return LoadedDevice(runner=ImmediateRunner(runner), hello=hello)
