"""Backpressure: how far the reader of one stream is behind, and what follows from that.

Owns how many tokens wait for the reader and whether the stream's sequences are paused for it.

    more than `pause_tokens` wait ──▶ paused ──▶ the reader has taken all but half of them ──▶ they go on
                                        └── it takes nothing for `timeout_s` ──▶ the stream ends

What was under way when the sequences were paused still comes, and is kept: it counts as delivered. Where as much again
comes they are to be paused once more: an engine that had just been started may have missed the first word. It knows
neither messages nor the engine, and reads no clock.
"""

from dataclasses import dataclass

from pagewire.scheduler_svc.frontend.errors import Exhausted, ResourceExhausted


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderLimits:
    """What is done about a slow reader."""

    pause_tokens: int
    """Tokens of a stream that may wait before its sequences are paused."""
    timeout_s: float
    """How long a paused stream's reader may take nothing."""


class Backpressure:
    """Of one stream. Its owner tells it what comes and goes, and does what it answers."""

    def __init__(self, limits: ReaderLimits | None) -> None:
        """None where everything is collected before it is sent: nobody is slow then."""
        self._limits = limits
        self._num_waiting = 0
        self._pause_above = 0 if limits is None else limits.pause_tokens
        self._since_s = 0.0
        """When it was paused, or the reader last took something after that."""
        self._was_overdue = False
        self.is_paused = False
        """Whether the stream's sequences are."""

    def put(self, now_s: float) -> bool:
        """One more token waits; whether the sequences are to be paused now."""
        self._num_waiting += 1
        if self._limits is None or self._num_waiting <= self._pause_above:
            return False
        self._pause_above = self._num_waiting + self._limits.pause_tokens
        if not self.is_paused:
            self.is_paused, self._since_s, self._was_overdue = True, now_s, False
        return True

    def took(self, num_tokens: int, now_s: float) -> bool:
        """The reader took a message with so many tokens; whether the sequences are to go on now."""
        self._num_waiting -= num_tokens
        self._since_s, self._was_overdue = now_s, False
        if self._limits is None or not self.is_paused or self._num_waiting > self._limits.pause_tokens // 2:
            return False
        self.end()
        return True

    def end(self) -> None:
        """Nothing is paused any more: they go on, or there are none left."""
        self.is_paused = False
        if self._limits is not None:
            self._pause_above = self._limits.pause_tokens

    def overdue(self, now_s: float) -> ResourceExhausted | None:
        """Asked from time to time: what the stream is to end with, if its reader has taken nothing for too long. Not
        before it is asked twice: where this process stood still itself, the reader gets its chance first."""
        limits = self._limits
        if limits is None or not self.is_paused or now_s - self._since_s < limits.timeout_s:
            return None
        if not self._was_overdue:
            self._was_overdue = True
            return None
        return ResourceExhausted(
            f"the client reads too slowly: {self._num_waiting} tokens of this stream wait for it, and it has taken "
            f"nothing for {limits.timeout_s:g} s (slow_reader_timeout_s)",
            retry_after_s=None,
            kind=Exhausted.READER,
        )
