"""The crew: every process of a server, by the post that it fills. Starts, tells and stops them.

It owns the posts and what a child is started with; what a child says goes into the supervisor's queue of events, with
its post and incarnation. It decides nothing: when to start a process, and what its end means, is the supervisor's.
"""

import asyncio
import logging
from collections.abc import Iterable

import msgspec

from pagewire.scheduler_svc.supervisor.child import Child, Exited
from pagewire.scheduler_svc.supervisor.posts import Post, Role
from pagewire.scheduler_svc.supervisor.ranks import Ranks
from pagewire.scheduler_svc.supervisor.server_plan import ServerPlan
from pagewire.scheduler_svc.supervisor.supervision import Event, Heard, Signalled
from pagewire.scheduler_svc.supervisor.surroundings import Surroundings
from pagewire.scheduler_svc.watchdog import Watchdog
from pagewire.wire.control import Stop, ToChild

_log = logging.getLogger(__name__)

TICK_S = 1.0
"""Between two looks at who still makes progress."""
STOP_S = 5.0
"""How long children may take to stop before they are killed."""
_HASTY_STOP_S = 1.0


class CannotStart(Exception):
    """The machine refuses to start a process."""


class Crew:
    """All posts of one server. Only the supervisor uses it."""

    def __init__(self, plan: ServerPlan, surroundings: Surroundings, events: asyncio.Queue[Event]) -> None:
        """`events` gets a Heard for whatever a child says; `stop_all` reads it in the supervisor's stead."""
        self._plan = plan
        self._around = surroundings
        self._events = events
        self.engine = self._post(Role.ENGINE, 0)
        self.ranks = Ranks([self._post(Role.WORKER, rank) for rank in range(plan.num_local_ranks)])
        self.frontends = [self._post(Role.FRONTEND, index) for index in range(plan.settings.frontends)]

    def _post(self, role: Role, index: int) -> Post:
        settings = self._plan.settings
        watchdog = Watchdog(settings.hang_timeout_s, TICK_S)
        return Post(role, index, settings.max_restarts, watchdog, self._around.clock)

    @property
    def posts(self) -> list[Post]:
        """All of them."""
        return [self.engine, *self.ranks.posts, *self.frontends]

    async def start(self, post: Post) -> None:
        """Fill a post with its next incarnation. Raises CannotStart."""
        post.incarnation += 1
        command, launch = self._command_and_launch(post)
        incarnation = post.incarnation
        try:
            file = self._around.runtime_dir.write(f"{post.name}.json", msgspec.json.encode(launch))
            child = await Child.start(
                (*command, "--launch", str(file)),
                self._around.environ,
                lambda event: self._events.put_nowait(Heard(post, incarnation, event)),
            )
        except OSError as error:
            raise CannotStart(f"{post} cannot be started: {error}") from error
        post.filled(child)
        _log.debug("%s started as process %d, incarnation %d", post, child.pid, incarnation)

    def _command_and_launch(self, post: Post) -> tuple[tuple[str, ...], msgspec.Struct]:
        commands = self._around.commands
        match post.role:
            case Role.ENGINE:
                return commands.engine, self._plan.engine_launch(post.incarnation)
            case Role.WORKER:
                return commands.worker, self._plan.worker_launch(post.index, post.incarnation, post.num_blocks or None)
            case Role.FRONTEND:
                known = post.addresses or self.frontends[0].addresses
                return commands.frontend, self._plan.frontend_launch(post.index, post.incarnation, known)

    def tell(self, posts: Iterable[Post], message: ToChild) -> None:
        """Say something to those of the posts that a process fills."""
        for post in posts:
            if post.child is not None:
                post.child.send(message)

    def abort(self, post: Post, reason: str) -> None:
        """End a process that stands still; its end comes as any other."""
        if post.child is not None:
            _log.error("%s %s and is ended", post, reason)
            post.failure = reason
            post.child.abort()

    async def stop_all(self, with_patience: bool) -> None:
        """Ask all to stop, then kill what has not. A signal meanwhile ends the patience.

        A process that even SIGKILL does not end at once (in the kernel, on a dead disk) is left to the kernel.
        """
        loop = asyncio.get_running_loop()
        self.tell(self.posts, Stop())
        deadline_s = loop.time() + (STOP_S if with_patience else _HASTY_STOP_S)
        killed = False
        while any(post.child is not None for post in self.posts):
            try:
                event = await asyncio.wait_for(self._events.get(), max(0.0, deadline_s - loop.time()))
            except TimeoutError:
                event = None
            match event:
                case Heard(post, incarnation, Exited()) if incarnation == post.incarnation:
                    post.child = None
                case None if killed:
                    return
                case None | Signalled():
                    killed = True
                    deadline_s = loop.time() + STOP_S
                    for post in self.posts:
                        if post.child is not None:
                            _log.warning("%s does not stop and is killed", post)
                            post.child.kill()
                case _:
                    continue
