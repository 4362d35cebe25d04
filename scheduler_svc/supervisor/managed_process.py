"""Managed processes: each is one of a server's, started again where it ends, with what the supervisor knows of it.

It outlives its incarnations: it counts them, and how often in a row one had to be started again.
"""

import enum
import math
from collections.abc import Callable

from pagewire.scheduler_svc.supervisor.child import Child
from pagewire.scheduler_svc.supervisor.server_plan import Addresses
from pagewire.scheduler_svc.watchdog import Watchdog

_SERVED_LONG_ENOUGH_S = 60.0
_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 10.0


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
        self._watchdog = watchdog
        self._restarts_in_row = 0
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

    def spoke(self) -> None:
        """It said something, whatever it was."""
        self._num_messages += 1

    def is_stuck(self) -> bool:
        """Asked at every tick: whether it served and has now been silent for too long.

        Never of a worker, which is silent while it computes: the engine watches its steps. Nor of a process that is not
        ready yet: a model may take any time to load.
        """
        watched = self.role is not Role.WORKER and self.child is not None and self.ready
        return self._watchdog.is_stuck(self._num_messages if watched else None)

    def restart_delay_s(self) -> float:
        """It has failed: how long to wait before the next incarnation. Raises RestartLimit.

        The first restart in a row is at once: most deaths are single ones, and streams wait meanwhile.
        """
        if self._ready_since_s is not None and self._clock() - self._ready_since_s >= _SERVED_LONG_ENOUGH_S:
            self._restarts_in_row = 0
        self._restarts_in_row += 1
        if self._restarts_in_row > self._max_restarts:
            raise RestartLimit
        if self._restarts_in_row == 1:
            return 0.0
        return min(_LONGEST_BACKOFF_S, math.ldexp(_FIRST_BACKOFF_S, self._restarts_in_row - 2))

    def ended(self) -> None:
        """It has ended."""
        self.child = None
        self._ready_since_s = None
