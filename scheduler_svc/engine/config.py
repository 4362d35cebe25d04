"""Scheduler configuration: the limits that one engine's scheduler keeps to, from settings, model and workers."""

import msgspec


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits that the scheduler keeps to. Raises ValueError where they contradict each other."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_prefill_tokens_per_step: int
    max_model_len: int
    max_queued: int
    max_queued_tokens: int
    """Of all sequences that wait; where there are tenants, one may have half of this and of max_queued."""
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    num_blocks: int
    block_size: int
    enable_prefix_caching: bool
    max_crashes_in_row: int = 12
    """Workers lost in a row without a token between them, at which all that are suspected of it fail."""

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
