"""The forecast: when a sequence that comes now would start, from how fast tokens are served while others wait.

Owns the measured rate and the mean length of outputs. It reads no clock and knows no sequence: the scheduler says, with
the time, how many tokens have been served, and how much waits.

The rate counts tokens that steps compute and those that the prefix cache spares, over the time in which somebody was
left waiting: an engine with little to do serves few tokens and could serve more. What waits costs its prompts and, for
each sequence, the mean of the outputs so far. In the long run slots, memory and budget all show in that rate, so
nothing is said of which of them is short.
"""

import math

from pagewire.scheduler_svc.engine.queue_order import Ranked

_TIME_CONSTANT_S = 10.0
_OUTPUT_WEIGHT = 1 / 32
MIN_RETRY_S = 0.1
"""Whoever comes again sooner costs more than a free place is worth."""
MAX_RETRY_S = 300.0
"""Nobody knows what will be later; an operator may have added engines by then."""
UNMEASURED_RETRY_S = 1.0
"""Where nothing was measured yet."""
_MAX_FORECAST_S = 24 * 3600.0
"""Beyond it nothing is said: no engine that is of use takes so long, and what was measured is of little use then."""


class Places:
    """Places of those who were told to come again: one after the other in each tenant, and tenants beside each other.

    A place lasts twice as long as its sequence takes the engine: half of what comes free is left to those who come
    without having been told, who cannot be told apart.
    """

    def __init__(self) -> None:
        self._until_s: Ranked[str] = Ranked()
        """By tenant, those with places ahead: when its last one ends."""

    def take(self, now_s: float, tenant: str, cost_s: float) -> float:
        """Take a place for a sequence that takes the engine so long; returns the seconds until it has come."""
        while (first := self._until_s.first()) is not None and first[0] <= now_s:
            self._until_s.discard(first[1])
        num_others = len(self._until_s) - (tenant in self._until_s)
        until_s = (self._until_s.rank_of(tenant) or now_s) + 2 * cost_s * (1 + num_others)
        wait_s = min(MAX_RETRY_S, max(MIN_RETRY_S, until_s - now_s))
        self._until_s.put(tenant, now_s + wait_s)
        return wait_s

    def clear(self) -> None:
        """Nobody waits any more: whoever comes is let in."""
        self._until_s = Ranked()


class Forecast:
    """Exponentially weighted: what was measured 10 s of waiting ago counts a third."""

    def __init__(self) -> None:
        self._at_s = 0.0
        self._num_served = 0
        self._is_backlogged = False
        self._tokens = 0.0
        self._time_s = 0.0
        self._mean_output = 0.0
        self._num_outputs = 0
        self._places = Places()

    def observe(self, now_s: float, num_served: int, *, is_backlogged: bool) -> None:
        """So many tokens have been served until now, in all. `is_backlogged`: somebody waits on from here."""
        if self._is_backlogged:
            elapsed_s = max(0.0, now_s - self._at_s)
            keep = math.exp(-elapsed_s / _TIME_CONSTANT_S)
            self._tokens = self._tokens * keep + num_served - self._num_served
            self._time_s = self._time_s * keep + elapsed_s
        self._at_s, self._num_served, self._is_backlogged = now_s, num_served, is_backlogged
        if not is_backlogged:
            self._places.clear()

    def pause(self) -> None:
        """The worker is gone: the time until the next observation says nothing."""
        self._is_backlogged = False

    def output_ended(self, num_tokens: int) -> None:
        """An output came to this length."""
        self._num_outputs += 1
        self._mean_output += (num_tokens - self._mean_output) * max(_OUTPUT_WEIGHT, 1 / self._num_outputs)

    @property
    def is_backlogged(self) -> bool:
        """Whether somebody was left waiting when it last observed."""
        return self._is_backlogged

    @property
    def tokens_per_s(self) -> float | None:
        """The rate; none where nobody has been left waiting yet."""
        return self._tokens / self._time_s if self._tokens > 0 and self._time_s > 0 else None

    def start_s(self, num_ahead: int, prompt_tokens_ahead: int) -> float | None:
        """How long until so many sequences, with so many prompt tokens, have been served; none where it is unknown."""
        start_s = self._served_s(num_ahead, prompt_tokens_ahead)
        return None if start_s is None or start_s > _MAX_FORECAST_S else start_s

    def retry_s(self, now_s: float, tenant: str, prompt_tokens: int) -> float:
        """When to come again, for one with so many prompt tokens who finds no room: behind those of its tenant who were
        told before, so that they do not come all at once."""
        cost_s = self._served_s(1, prompt_tokens)
        return UNMEASURED_RETRY_S if cost_s is None else self._places.take(now_s, tenant, cost_s)

    def _served_s(self, num_ahead: int, prompt_tokens_ahead: int) -> float | None:
        rate = self.tokens_per_s
        return None if rate is None else (prompt_tokens_ahead + num_ahead * self._mean_output) / rate
