"""Usage: what one stream has taken so far, in tokens and in time.

It is a record, made anew whenever somebody asks: responses, logs, traces and metrics say the same of a request.
"""

from typing import NamedTuple

from pagewire.v1 import generation_pb2 as pb


class StreamUse(NamedTuple):
    """What a stream has used so far, and when it came to what, on its clock, in seconds; none of what has not come."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    submitted_s: float
    started_s: float | None
    """When its first step was planned."""
    first_token_s: float | None
    last_token_s: float | None

    @property
    def queue_s(self) -> float:
        """Until its first step."""
        return 0.0 if self.started_s is None else self.started_s - self.submitted_s

    @property
    def prefill_s(self) -> float:
        """From its first step to its first token."""
        if self.started_s is None or self.first_token_s is None:
            return 0.0
        return max(0.0, self.first_token_s - self.started_s)

    @property
    def decode_s(self) -> float:
        """From its first token to its last."""
        if self.first_token_s is None or self.last_token_s is None:
            return 0.0
        return self.last_token_s - self.first_token_s

    def describe(self, into: pb.Usage) -> None:
        """As a response says it."""
        into.prompt_tokens = self.prompt_tokens
        into.cached_tokens = self.cached_tokens
        into.completion_tokens = self.output_tokens
        into.timings.queue.FromMicroseconds(round(self.queue_s * 1e6))
        into.timings.prefill.FromMicroseconds(round(self.prefill_s * 1e6))
        into.timings.decode.FromMicroseconds(round(self.decode_s * 1e6))
