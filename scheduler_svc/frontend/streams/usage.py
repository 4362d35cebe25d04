"""Usage: what one stream has taken so far, in tokens and in time.

Owns when its request went to the engine, its first step, its first token and its last, on the clock of whoever tells
it. Responses, logs, traces and metrics say the same of a request, for all are made of one record.
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


class StreamUsage:
    """Of one stream, which tells it what comes."""

    def __init__(self, prompt_tokens: int, now_s: float) -> None:
        """Its request goes to the engine now."""
        self._prompt_tokens = prompt_tokens
        self.cached_tokens = 0
        self.submitted_s = now_s
        self._sent_s = now_s
        """To the engine that starts it."""
        self._started_s: float | None = None
        self.first_token_s: float | None = None
        self._last_token_s: float | None = None

    def sent_again(self, now_s: float) -> None:
        """Its request goes to a new engine now, whose times count from then; what had started has queued already."""
        if self._started_s is None:
            self._sent_s = now_s

    def started(self, cached_tokens: int, queue_s: float) -> None:
        """Its first step was planned, so long after its request had come to the engine, with so many tokens that were
        there."""
        self.cached_tokens = cached_tokens
        self._started_s = self._sent_s + queue_s

    def token(self, now_s: float) -> None:
        """A token of any output."""
        if self.first_token_s is None:
            self.first_token_s = now_s
        self._last_token_s = now_s

    def until_now(self, output_tokens: int) -> StreamUse:
        """The record. `output_tokens`: of all outputs, those that are held back too."""
        return StreamUse(
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self.cached_tokens,
            output_tokens=output_tokens,
            submitted_s=self.submitted_s,
            started_s=self._started_s,
            first_token_s=self.first_token_s,
            last_token_s=self._last_token_s,
        )
