"""Tenants' limits: how much each may ask for, from a file that says so, and what it has used.

It counts the calls that generate of one frontend and owns those counts; it knows neither requests nor the engine. A
budget of so much a minute is a bucket that holds one minute's worth, full at first, and fills evenly. A request is let
in while there are tokens left, and what it used is taken off at its end, because nobody knows before: the balance may
then be below zero, and the next request waits the longer.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from pagewire.scheduler_svc.frontend.errors import Exhausted, InvalidArgument, ResourceExhausted
from pagewire.scheduler_svc.frontend.limits import MAX_PRIORITY, MIN_PRIORITY
from pagewire.scheduler_svc.startup_errors import StartupError
from pagewire.wire.codec import WireError, decode_json

OTHERS = "*"
"""Stands in the file for every tenant that is not named."""
_RETRY_S = 1.0
_MINUTE_S = 60.0

_Number = Annotated[int, Meta(ge=1, le=2**53)]


class TenantLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one tenant may ask of one frontend; none is no limit."""

    max_priority: Annotated[int, Meta(ge=MIN_PRIORITY, le=MAX_PRIORITY)] | None = None
    """A request above it is refused, one that names none gets it where it is below 0."""
    max_concurrent_requests: _Number | None = None
    requests_per_minute: _Number | None = None
    tokens_per_minute: _Number | None = None
    """Of prompts and outputs together, cached ones too."""


class LimitsFileError(StartupError):
    """The limits file cannot be used."""


def read_limits(path: str) -> dict[str, TenantLimits]:
    """Raises LimitsFileError, OSError."""
    try:
        return decode_json(Path(path).read_bytes(), dict[str, TenantLimits])
    except WireError as error:
        raise LimitsFileError(f"{path}: {error}") from error


@dataclass(slots=True)
class _Bucket:
    level: float
    filled_s: float

    def fill(self, per_minute: int, now_s: float) -> None:
        """What has come since the last time; never more than a minute's worth."""
        self.level = min(per_minute, self.level + (now_s - self.filled_s) * per_minute / _MINUTE_S)
        self.filled_s = now_s


@dataclass(slots=True)
class _Usage:
    running: int = 0
    requests: _Bucket = field(default_factory=lambda: _Bucket(math.inf, 0.0))
    tokens: _Bucket = field(default_factory=lambda: _Bucket(math.inf, 0.0))
    """The first fill cuts them down to a minute's worth."""


class Turn:
    """One call of a tenant."""

    def __init__(self, limits: TenantLimits) -> None:
        self._limits = limits
        self.num_tokens = 0
        """That it used, prompt and outputs, once they are known."""

    def priority(self, asked: int, *, is_set: bool) -> int:
        """What the request gets. Raises InvalidArgument."""
        most = self._limits.max_priority
        if most is None or asked <= most:
            return asked
        if not is_set:
            return most
        raise InvalidArgument("generation.priority", f"is {asked}; this tenant's limit is {most}")


class TenantUsage:
    """Counts every tenant's calls. Used from the event loop's thread alone."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Without limits. `clock` is monotonic, in seconds."""
        self._clock = clock
        self._limits: dict[str, TenantLimits] = {}
        self._usage: dict[str, _Usage] = {}

    def use(self, limits: dict[str, TenantLimits]) -> None:
        """These from now on; what was used stays used."""
        self._limits = limits

    @contextlib.contextmanager
    def turn(self, tenant: str) -> Iterator[Turn]:
        """A call while the block runs. Raises ResourceExhausted where it must wait."""
        limits = self._limits.get(tenant) or self._limits.get(OTHERS)
        if limits is None:
            yield Turn(TenantLimits())
            return
        usage = self._usage.setdefault(tenant, _Usage())
        self._let_in(tenant, usage, limits)
        turn = Turn(limits)
        usage.running += 1
        try:
            yield turn
        finally:
            usage.running -= 1
            usage.tokens.level -= turn.num_tokens

    def _let_in(self, tenant: str, usage: _Usage, limits: TenantLimits) -> None:
        now_s = self._clock()
        most = limits.max_concurrent_requests
        if most is not None and usage.running >= most:
            raise ResourceExhausted(
                f"{usage.running} requests of tenant {tenant} run; its limit is {most}", _RETRY_S, Exhausted.TENANT
            )
        for bucket, per_minute, least, what in (
            (usage.tokens, limits.tokens_per_minute, 0.0, "tokens"),
            (usage.requests, limits.requests_per_minute, 1.0, "requests"),
        ):
            if per_minute is None:
                continue
            bucket.fill(per_minute, now_s)
            # A token's worth more than nothing, so that it is not asked for again at the very moment.
            if bucket.level < least or bucket.level <= 0:
                wait_s = (max(least, 1.0) - bucket.level) * _MINUTE_S / per_minute
                raise ResourceExhausted(
                    f"tenant {tenant} has used its {per_minute} {what} a minute, the limit",
                    math.ceil(wait_s * 1000) / 1000,
                    Exhausted.TENANT,
                )
        usage.requests.level -= 1
