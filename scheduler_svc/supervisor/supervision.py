"""What happens to the supervisor, as events, and how it all ends."""

import enum
from typing import NamedTuple

from pagewire.scheduler_svc.supervisor.child import ChildEvent
from pagewire.scheduler_svc.supervisor.posts import Post


class Phase(enum.Enum):
    """Of the whole server; it only goes forward."""

    STARTING = enum.auto()
    SERVING = enum.auto()
    DRAINING = enum.auto()


class Heard(NamedTuple):
    """A child said something, or ended."""

    post: Post
    incarnation: int
    """Of the child; the post may have a newer one by now."""
    event: ChildEvent


class Signalled(NamedTuple):
    """A signal came."""

    number: int


class RestartDue(NamedTuple):
    """A post has waited long enough for its next process."""

    post: Post


class RanksOverdue(NamedTuple):
    """Ranks that were told to stop should have."""

    incarnation: int


class DrainOverdue(NamedTuple):
    """Frontends should have drained by now."""


class Tick(NamedTuple):
    """Time has passed: see who still makes progress."""


Event = Heard | Signalled | RestartDue | RanksOverdue | DrainOverdue | Tick


class Outcome(NamedTuple):
    """How the server ends."""

    status: int
    """Exit status."""
    message: str = ""
    """For stderr, where something went wrong."""
    in_haste: bool = False
    """Children get a moment instead of seconds to stop."""
