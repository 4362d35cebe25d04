"""Events: what happens to the supervisor, and how it all ends."""

import enum
from typing import NamedTuple

from pagewire.scheduler_svc.supervisor.child import ChildEvent
from pagewire.scheduler_svc.supervisor.managed_process import ManagedProcess


class Phase(enum.Enum):
    """Of the whole server; it only goes forward."""

    STARTING = enum.auto()
    SERVING = enum.auto()
    DRAINING = enum.auto()


class FromProcess(NamedTuple):
    """A child said something, or ended."""

    process: ManagedProcess
    incarnation: int
    """Of the child; there may be a newer one by now."""
    event: ChildEvent


class Signalled(NamedTuple):
    """A signal came."""

    number: int


class RestartDue(NamedTuple):
    """A process has been away long enough for its next incarnation."""

    process: ManagedProcess


class RanksOverdue(NamedTuple):
    """Ranks that were told to stop should have."""

    incarnation: int


class DrainOverdue(NamedTuple):
    """Frontends should have drained by now."""


class Tick(NamedTuple):
    """Time has passed: see who still makes progress."""


Event = FromProcess | Signalled | RestartDue | RanksOverdue | DrainOverdue | Tick


class Outcome(NamedTuple):
    """How the server ends."""

    status: int
    """Exit status."""
    message: str = ""
    """For stderr, where something went wrong."""
    in_haste: bool = False
    """Children get a moment instead of seconds to stop."""
    gave_up: bool = False
    """One of the processes cannot be kept running, and streams are told so."""
