"""Retry policy: when a failed call is tried again, and how long to wait before.

Only UNAVAILABLE is tried again, because only there does the server promise to have done nothing that counts, and only
while nothing has come back (`resume` says when a stream may go on after that). A CANCELLED that this program did not
cause counts as one (`errors`): gRPC's server says so to calls that no service had seen when it shut down.
RESOURCE_EXHAUSTED is the caller's to pace: its advice stands in `Overloaded.retry_after_s`. But a stream that goes on
after a break was accepted once, and is not lost because somebody took its place: it waits as it is told.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from pagewire.client.errors import Overloaded, PagewireError, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential delays, jittered down to their half. The defaults go on for 9.2 s at least and 18.5 at most: longer
    than a server's longest back-off (LONGEST_BACKOFF_S of its supervisor, 5 s) and a start after it. They never wait
    for more than a second: a process that was killed is back in about one."""

    max_attempts: int = 22
    """Tries in a row without progress, the first included; 1 never tries again."""
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 1.0
    max_retry_after_s: float = 10.0
    """A server that asks for a longer wait is not waited for; a stream that goes on asks again after so long."""
    jitter: Callable[[], float] = random.random
    """Uniform in [0, 1)."""

    @property
    def least_patience_s(self) -> float:
        """How long the tries of one call go on at least, where each fails at once and the server advises nothing."""
        return sum(self._backoff_s(failures) / 2 for failures in range(1, self.max_attempts))

    def delay_s(self, error: PagewireError, failures: int, *, is_resumed: bool = False) -> float | None:
        """How long to wait after the `failures`-th failure in a row; none: give up and raise it. `is_resumed`: what
        failed was to continue a stream."""
        if failures >= self.max_attempts:
            return None
        if isinstance(error, Overloaded) and is_resumed and failures > 1 and error.retry_after_s is not None:
            return max(min(error.retry_after_s, self.max_retry_after_s), self._backoff_s(1))
        if not isinstance(error, Unavailable):
            return None
        advice = error.retry_after_s or 0.0
        if advice > self.max_retry_after_s:
            return None
        return max(advice, self._backoff_s(failures) * (0.5 + self.jitter() / 2))

    def _backoff_s(self, failures: int) -> float:
        return min(self.max_backoff_s, self.initial_backoff_s * 2.0 ** (failures - 1))


NO_RETRY = RetryPolicy(max_attempts=1)


class Attempts:
    """Counts one call's failures against a policy and its deadline, which spans all of its tries."""

    def __init__(
        self, policy: RetryPolicy, timeout_s: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._deadline = None if timeout_s is None else clock() + timeout_s
        self._failures = 0

    def remaining_s(self) -> float | None:
        """Time left for the next try, never negative; none without a deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - self._clock())

    def progress(self) -> None:
        """Something came back: the next failure is a first one."""
        self._failures = 0

    def failed(self, error: PagewireError, *, is_resumed: bool = False) -> float | None:
        """Count a failure. How long to wait before the next try; none: raise it, as waiting would pass the deadline."""
        self._failures += 1
        delay = self._policy.delay_s(error, self._failures, is_resumed=is_resumed)
        left = self.remaining_s()
        return None if delay is None or (left is not None and delay >= left) else delay
