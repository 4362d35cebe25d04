"""What the scheduler is built with, what it plans and what comes of it: records without behaviour."""

from dataclasses import dataclass

import msgspec

from pagewire.scheduler_svc.engine.sequence import SequenceKey
from pagewire.wire.columns import Int32Array
from pagewire.wire.plan import StepPlan
from pagewire.wire.requests import FinishKind, RejectKind, SeqStarted


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits that the scheduler keeps to. Raises ValueError where they contradict each other."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_prefill_tokens_per_step: int
    max_model_len: int
    max_queued: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    num_blocks: int
    block_size: int
    enable_prefix_caching: bool

    @property
    def longest(self) -> int:
        """How long a sequence can become: one alone must fit the memory; its last token is sampled, never computed."""
        return min(self.max_model_len, self.num_blocks * self.block_size + 1)

    def __post_init__(self) -> None:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; it must be at least max_num_seqs, "
                f"{self.max_num_seqs}, so that every running sequence can decode in every step"
            )
        if self.max_prefill_tokens_per_step < 1:
            raise ValueError(
                f"max_prefill_tokens_per_step is {self.max_prefill_tokens_per_step}; it must be at least 1"
            )


@dataclass(frozen=True, slots=True)
class Rejection:
    """A sequence that was not taken, or gave up waiting."""

    key: SequenceKey
    kind: RejectKind
    field: str
    message: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """A sequence's end."""

    key: SequenceKey
    kind: FinishKind
    limit: int = 0
    """As `SeqFinished.limit`."""


@dataclass(frozen=True, slots=True)
class Start:
    """A sequence's first step has been planned."""

    frontend: int
    event: SeqStarted


@dataclass(frozen=True, slots=True, eq=False)
class PlannedStep:
    """A plan, and what is needed to understand its result."""

    plan: StepPlan
    rows: Int32Array
    """Slots that sample, in the order of the result's tokens."""
    tenures: Int32Array
    """`SlotTable.tenure` of those slots when the plan was made."""
    starts: list[Start]


@dataclass(frozen=True, slots=True, eq=False)
class StepOutcome:
    """New tokens, as columns of equal length, and the sequences that they ended."""

    frontends: Int32Array
    handles: Int32Array
    tokens: Int32Array
    finishes: list[Finish]


@dataclass(slots=True)
class Counters:
    """Totals since the scheduler was made."""

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
