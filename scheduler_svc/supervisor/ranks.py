"""The worker's ranks that this server starts itself. They begin together and end together.

Ranks that are left of a group cannot take another rank in: their collectives wait for one that is gone. So the loss of
one is the loss of all, and so is, for several ranks, the loss of the engine: it may have given its last plan to some.
"""

import logging
from collections.abc import Sequence

from pagewire.scheduler_svc.supervisor.posts import Post
from pagewire.wire.control import Stop

_log = logging.getLogger(__name__)


class Ranks:
    """Their posts as one. Only the supervisor changes it."""

    def __init__(self, posts: Sequence[Post]) -> None:
        self.posts = posts
        self.is_ending = False
        """Some have ended, and the others were told to."""
        self.restart_delay_s = 0.0
        """How long to wait, once all have ended."""

    @property
    def incarnation(self) -> int:
        """Of all of them."""
        return self.posts[0].incarnation

    @property
    def all_ended(self) -> bool:
        """Whether no process is left."""
        return all(post.child is None for post in self.posts)

    def lose(self) -> None:
        """One has ended by itself. Raises RestartLimit where that has happened too often in a row, to any of them."""
        self.end(self.posts[0].restart_delay_s())

    def end(self, restart_delay_s: float) -> None:
        """Ask those that are left to stop."""
        self.is_ending = True
        self.restart_delay_s = restart_delay_s
        for post in self.posts:
            if post.child is not None:
                post.child.send(Stop())

    def kill(self) -> None:
        """End those that have not stopped: they wait for each other within a step."""
        for post in self.posts:
            if post.child is not None:
                _log.warning("%s does not stop and is killed", post)
                post.child.kill()
