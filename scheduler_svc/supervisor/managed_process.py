"""Managed processes: each is one of a server's, started again where it ends, with what the supervisor knows of it.

It outlives its incarnations: it counts them, and how often in a row one ended without having been of use. Only those
count against the limit: a process that had served begins anew, however often it is killed.
"""

import enum
import math
from collections import deque
from collections.abc import Callable

from pagewire.scheduler_svc.supervisor.child import Child
from pagewire.scheduler_svc.supervisor.server_plan import Addresses
from pagewire.scheduler_svc.watchdog import Watchdog

SERVED_S = 1.0
"""One that was ready for so long has served, whether or not there was anything to do."""
FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0
"""Before the next incarnation of one that was never ready. A client's default patience must outlast it, and a start:
`pagewire.client.retry`."""
_LONGEST_BACKOFF_AFTER_READY_S = 1.0
"""Before that of one that was, for which streams wait."""
_ENDS_AT_ONCE = 5
"""So many of those are begun again at once, where the first of them is not older than that:"""
_ENDS_WINDOW_S = 5.0


class Role(enum.Enum):
    """What a process does."""

    ENGINE = "engine"
    WORKER = "worker"
    FRONTEND = "frontend"


class RestartLimit(Exception):
    """A process ended too often in a row."""


class ManagedProcess:
    """One of them. Only the supervisor changes it."""

    def __init__(
        self, role: Role, index: int, max_restarts: int, watchdog: Watchdog, clock: Callable[[], float]
    ) -> None:
        self.role = role
        self.index = index
        self.incarnation = -1
        """The one that runs, or ran last; counts from 0."""
        self.child: Child | None = None
        self.failure = ""
        """What it gave as its reason to end."""
        self.addresses: Addresses | None = None
        """Where a frontend listens, once one has said so; kept for those after it."""
        self.num_blocks = 0
        """KV blocks of a worker, as its first incarnation that served had them; 0 before."""
        self.drained = False
        self._ready_since_s: float | None = None
        self._num_messages = 0
        self._num_reported = 0
        self._watchdog = watchdog
        self._has_served = False
        self._restarts_in_row = 0
        self._ends_s: deque[float] = deque(maxlen=_ENDS_AT_ONCE)
        """When it ended after it was ready: the last times."""
        self._max_restarts = max_restarts
        self._clock = clock

    def __str__(self) -> str:
        return self.role.value if self.role is Role.ENGINE else f"{self.role.value} {self.index}"

    @property
    def name(self) -> str:
        """For file names."""
        return f"{self.role.value}-{self.index}"

    @property
    def ready(self) -> bool:
        """Whether it runs and serves."""
        return self._ready_since_s is not None

    def started(self, child: Child) -> None:
        """Its next incarnation has been started."""
        self.child = child
        self.failure = ""

    def became_ready(self) -> None:
        """It serves. Said again, which an engine does after each recovery, it changes nothing."""
        if self._ready_since_s is None:
            self._ready_since_s = self._clock()

    def has_served(self) -> None:
        """It has been of use since it became ready. Of one that is not ready, an earlier incarnation was meant."""
        self._has_served = self.ready

    def spoke(self) -> None:
        """It said something, whatever it was."""
        self._num_messages += 1

    def has_spoken(self) -> bool:
        """Whether it said something since this was last asked."""
        heard, self._num_reported = self._num_reported, self._num_messages
        return self._num_messages != heard

    def is_stuck(self) -> bool:
        """Asked at every tick: whether it served and has now been silent for too long.

        Never of a worker, which is silent while it computes: the engine watches its steps. Nor of a process that is not
        ready yet: a model may take any time to load.
        """
        watched = self.role is not Role.WORKER and self.child is not None and self.ready
        return self._watchdog.is_stuck(self._num_messages if watched else None)

    def restart_delay_s(self) -> float:
        """It has failed: how long to wait before the next incarnation. Raises RestartLimit.

        Without progress the limit comes nearer and the delays grow. The first restart in a row is at once, and of one
        that was ready five within five seconds: streams wait meanwhile, and to begin again takes little.
        """
        now_s = self._clock()
        ready_s = -1.0 if self._ready_since_s is None else now_s - self._ready_since_s
        # One that hung, or says itself why it ends, has not served by having been ready.
        if self._has_served or (ready_s >= SERVED_S and not self.failure):
            self._restarts_in_row = 0
        self._restarts_in_row += 1
        if self._restarts_in_row > self._max_restarts:
            raise RestartLimit
        if not self.ready:
            return _delay_s(self._restarts_in_row)
        are_many = len(self._ends_s) == _ENDS_AT_ONCE
        delay_s = self._ends_s[0] + _ENDS_WINDOW_S - now_s if are_many else 0.0
        self._ends_s.append(now_s)
        return min(max(delay_s, 0.0), _LONGEST_BACKOFF_AFTER_READY_S)

    def ended(self) -> None:
        """It has ended."""
        self.child = None
        self._ready_since_s = None
        self._has_served = False


def _delay_s(ends_in_row: int) -> float:
    return 0.0 if ends_in_row == 1 else min(LONGEST_BACKOFF_S, math.ldexp(FIRST_BACKOFF_S, min(ends_in_row, 64) - 2))
