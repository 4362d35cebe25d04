"""The supervisor: starts the engine, the workers and the frontends, watches them, and ends them.

It owns the child processes, the phase of the server and its exit status, and knows nothing of requests. One loop takes
events from one queue (what a child said, an exit, a signal, a timer) and is the only writer of all its state:

    STARTING ── all ready ──▶ SERVING ── signal, or an operator's Drain ──▶ DRAINING ── all drained ──▶ end, status 0
       └──────────────────── an operator's Drain ─────────────────────────────▲

- While STARTING, a child's end is the server's end: status 1, and the reason on stderr.
- Later, a child that ends is started again with the next incarnation. The engine is told of a lost worker; workers and
  frontends are told of a new engine. Ranks of one model end and begin together. More than `max_restarts` in a row end
  the server with status 1.
- A child that stands still without ending is ended: the engine and frontends by their silence, workers when the engine
  says that a step is overdue. What follows is what follows any other end.
- A signal while STARTING, and a second signal at any time, ends the server at once with 128 + its number.
- However the supervisor ends, no child outlives it: a child reads end-of-file on its lifeline and ends.
"""

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Mapping

import msgspec

from pagewire.scheduler_svc.progress import Progress
from pagewire.scheduler_svc.settings.addresses import check_port_unused
from pagewire.scheduler_svc.supervisor.child import Child, ChildEvent, Exited
from pagewire.scheduler_svc.supervisor.posts import Post, RestartLimit, Role
from pagewire.scheduler_svc.supervisor.ranks import Ranks
from pagewire.scheduler_svc.supervisor.runtime_dir import RuntimeDir
from pagewire.scheduler_svc.supervisor.sd_notify import SystemdNotifier
from pagewire.scheduler_svc.supervisor.server_plan import RANKS_STORE, Addresses, Commands, ServerPlan
from pagewire.scheduler_svc.supervisor.supervision import (
    DrainOverdue,
    Event,
    Heard,
    Outcome,
    Phase,
    RanksOverdue,
    RestartDue,
    Signalled,
    Tick,
)
from pagewire.scheduler_svc.watchdog import Watchdog
from pagewire.wire.control import (
    Alive,
    Drain,
    Drained,
    DrainRequested,
    EngineRestarted,
    Failed,
    Loading,
    Ready,
    StepOverdue,
    Stop,
    ToChild,
    WorkerLost,
)

_log = logging.getLogger(__name__)

_STOP_S = 5.0
"""How long children may take to stop before they are killed."""
_HASTY_STOP_S = 1.0
_RANKS_STOP_S = 2.0
"""The same for ranks of a group that has lost one: those that wait for it within a step cannot obey."""
_DRAIN_SLACK_S = 5.0
"""How much longer than delay and grace frontends may take to drain."""

_TICK_S = 1.0
"""Between two looks at who still makes progress."""


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor acts through, other than its children's lifelines."""

    commands: Commands
    runtime_dir: RuntimeDir
    environ: Mapping[str, str]
    """Of the children."""
    progress: Progress
    notifier: SystemdNotifier
    announce: Callable[[Addresses], None]
    """Called once, when everything is ready."""
    clock: Callable[[], float] = time.monotonic


class Supervisor:
    """Runs one server from start to end: `await Supervisor(plan, surroundings).run()`."""

    def __init__(self, plan: ServerPlan, surroundings: Surroundings) -> None:
        self._plan = plan
        self._around = surroundings
        self._settings = plan.settings
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._phase = Phase.STARTING
        self._outcome: Outcome | None = None
        self._engine = self._post(Role.ENGINE, 0)
        self._ranks = Ranks([self._post(Role.WORKER, rank) for rank in range(plan.num_local_ranks)])
        self._frontends = [self._post(Role.FRONTEND, index) for index in range(self._settings.frontends)]

    async def run(self) -> Outcome:
        """Serve until the end, and leave no child behind."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                loop.add_signal_handler(number, self._events.put_nowait, Signalled(number))
        if self._settings.frontends > 1:
            check_port_unused("listen", self._settings.listen)
        self._tick_later()
        try:
            # The other frontends follow the first: with port 0 it alone can say which port they share.
            for post in (self._engine, *self._ranks.posts, self._frontends[0]):
                await self._start(post)
            while self._outcome is None:
                # Whatever is done about an event is done before the next is looked at.
                await self._handle(await self._events.get())
        finally:
            self._around.progress.close()
            self._around.notifier.notify("STOPPING=1")
            await self._stop_children(self._outcome is not None and not self._outcome.in_haste)
        return self._outcome

    def _post(self, role: Role, index: int) -> Post:
        watchdog = Watchdog(self._settings.hang_timeout_s, _TICK_S)
        return Post(role, index, self._settings.max_restarts, watchdog, self._around.clock)

    def _posts(self) -> list[Post]:
        return [self._engine, *self._ranks.posts, *self._frontends]

    async def _start(self, post: Post) -> None:
        post.incarnation += 1
        match post.role:
            case Role.ENGINE:
                command = self._around.commands.engine
                launch: msgspec.Struct = self._plan.engine_launch(post.incarnation)
            case Role.WORKER:
                command = self._around.commands.worker
                launch = self._plan.worker_launch(post.index, post.incarnation)
            case Role.FRONTEND:
                command = self._around.commands.frontend
                known = post.addresses or self._frontends[0].addresses
                launch = self._plan.frontend_launch(post.index, post.incarnation, known)
        incarnation = post.incarnation
        try:
            file = self._around.runtime_dir.write(f"{post.name}.json", msgspec.json.encode(launch))
            child = await Child.start(
                (*command, "--launch", str(file)),
                self._around.environ,
                lambda event: self._events.put_nowait(Heard(post, incarnation, event)),
            )
        except OSError as error:
            self._outcome = Outcome(1, f"{post} cannot be started: {error}")
            return
        post.filled(child)
        _log.debug("%s started as process %d, incarnation %d", post, child.pid, incarnation)

    def _tick_later(self) -> None:
        asyncio.get_running_loop().call_later(_TICK_S, self._events.put_nowait, Tick())

    async def _handle(self, event: Event) -> None:
        match event:
            case Tick():
                self._on_tick()
            case Signalled(number):
                self._on_signal(number)
            case RestartDue(post):
                await self._restart(post)
            case RanksOverdue(incarnation):
                if self._ranks.is_ending and incarnation == self._ranks.incarnation:
                    self._ranks.kill()
            case DrainOverdue():
                waiting = ", ".join(str(post) for post in self._frontends if not post.drained)
                self._outcome = Outcome(1, f"{waiting} did not drain in time")
            case Heard(post, incarnation, _) if incarnation != post.incarnation:
                return
            case Heard(post, _, news):
                post.heard()
                await self._on_news(post, news)

    async def _on_news(self, post: Post, news: ChildEvent) -> None:
        match news:
            case Exited():
                self._on_exit(post, news)
            case Alive():
                pass  # it has been heard
            case StepOverdue(waited_s):
                for worker in self._ranks.posts:
                    self._abort(worker, f"has held a step for {waited_s:g} s")
            case Loading(stage, fraction):
                # The other ranks load as long; rank 0 says whom it waits for.
                if self._phase is Phase.STARTING and post is self._ranks.posts[0]:
                    self._around.progress.report(stage, fraction)
            case Ready():
                await self._on_ready(post, news)
            case Failed(reason):
                post.failure = reason
                if self._phase is Phase.STARTING:
                    self._outcome = Outcome(1, f"{post} cannot start: {reason}")
            case DrainRequested(grace_s):
                if self._phase is not Phase.DRAINING:
                    _log.info("draining, as an operator asked")
                    self._drain(self._settings.drain_grace_s if grace_s is None else grace_s)
            case Drained(cut_streams):
                if cut_streams:
                    _log.warning("%s cut %d streams that the grace time did not suffice for", post, cut_streams)
                self._on_drained(post)

    def _on_tick(self) -> None:
        self._tick_later()
        if self._phase is not Phase.STARTING:
            self._around.notifier.notify("WATCHDOG=1")
        for post in self._posts():
            if post.is_stuck():
                self._abort(post, f"has made no progress for {self._settings.hang_timeout_s:g} s")

    def _abort(self, post: Post, reason: str) -> None:
        if post.child is not None:
            _log.error("%s %s and is ended", post, reason)
            post.failure = reason
            post.child.abort()

    def _on_signal(self, number: int) -> None:
        if self._phase is Phase.SERVING:
            _log.info("draining after %s; a second one ends at once", signal.Signals(number).name)
            self._drain(self._settings.drain_grace_s)
        else:
            self._outcome = Outcome(128 + number, in_haste=True)

    async def _on_ready(self, post: Post, ready: Ready) -> None:
        was_ready = post.ready
        post.became_ready()
        if post.role is Role.FRONTEND:
            post.addresses = Addresses(ready.address, ready.admin_address)
        if self._phase is not Phase.STARTING:
            if not was_ready:
                _log.info("%s is back", post)
            return
        if post is self._frontends[0]:
            for other in self._frontends[1:]:
                await self._start(other)
        if all(known.ready for known in self._posts()):
            self._phase = Phase.SERVING
            self._around.progress.close()
            self._around.notifier.notify("READY=1", "STATUS=serving")
            assert self._frontends[0].addresses is not None
            self._around.announce(self._frontends[0].addresses)

    def _on_exit(self, post: Post, exited: Exited) -> None:
        reason = f"{exited}: {post.failure}" if post.failure else str(exited)
        post.child = None
        if self._phase is Phase.STARTING:
            self._outcome = self._outcome or Outcome(1, f"{post} {reason}, before it was ready")
            return
        if self._phase is Phase.DRAINING and post.role is Role.FRONTEND:
            if not post.drained:
                _log.error("%s %s while draining", post, reason)
            self._on_drained(post)
            return
        if post.role is Role.WORKER and self._ranks.is_ending:
            _log.info("%s %s, as its group did", post, reason)
            post.emptied()
            self._restart_ended_ranks()
            return
        _log.error("%s %s", post, reason)
        try:
            if post.role is Role.WORKER:
                self._ranks.lose()
            else:
                delay_s = post.restart_delay_s()
        except RestartLimit:
            restarts = self._settings.max_restarts
            self._outcome = Outcome(1, f"{post} {reason}; it was started again {restarts} times in a row, the limit")
            return
        post.emptied()
        if post.role is Role.WORKER:
            self._end_ranks()
            return
        if post.role is Role.ENGINE and self._plan.world_size > 1 and not self._ranks.is_ending:
            self._ranks.end(0.0)
            self._end_ranks()
        asyncio.get_running_loop().call_later(delay_s, self._events.put_nowait, RestartDue(post))

    def _end_ranks(self) -> None:
        """The group ends: nothing that it still has in flight will be answered."""
        for rank in range(self._plan.world_size):
            self._tell([self._engine], WorkerLost(rank))
        overdue = RanksOverdue(self._ranks.incarnation)
        asyncio.get_running_loop().call_later(_RANKS_STOP_S, self._events.put_nowait, overdue)
        self._restart_ended_ranks()

    def _restart_ended_ranks(self) -> None:
        if self._ranks.all_ended:
            due = RestartDue(self._ranks.posts[0])
            asyncio.get_running_loop().call_later(self._ranks.restart_delay_s, self._events.put_nowait, due)

    async def _restart(self, post: Post) -> None:
        if self._phase is Phase.DRAINING and post.role is Role.FRONTEND:
            return
        if post.role is Role.WORKER:
            self._ranks.is_ending = False
            self._around.runtime_dir.remove(RANKS_STORE)
            for rank in self._ranks.posts:
                await self._start(rank)
            return
        await self._start(post)
        if post.role is Role.ENGINE:
            told = self._frontends if self._plan.world_size > 1 else [*self._ranks.posts, *self._frontends]
            self._tell(told, EngineRestarted(post.incarnation))
            if self._phase is Phase.DRAINING:
                self._tell([post], Drain(0.0, 0.0))

    def _drain(self, grace_s: float) -> None:
        self._phase = Phase.DRAINING
        delay_s = self._settings.drain_delay_s
        self._around.notifier.notify("STOPPING=1")
        self._around.notifier.extend(delay_s + grace_s + _DRAIN_SLACK_S + 2 * _STOP_S, "draining")
        self._tell([self._engine, *self._frontends], Drain(delay_s, grace_s))
        asyncio.get_running_loop().call_later(
            delay_s + grace_s + _DRAIN_SLACK_S, self._events.put_nowait, DrainOverdue()
        )
        for post in self._frontends:
            if post.child is None:
                self._on_drained(post)

    def _on_drained(self, post: Post) -> None:
        post.drained = True
        if all(frontend.drained for frontend in self._frontends):
            self._outcome = Outcome(0)

    def _tell(self, posts: list[Post], message: ToChild) -> None:
        for post in posts:
            if post.child is not None:
                post.child.send(message)

    async def _stop_children(self, with_patience: bool) -> None:
        """Ask all to stop, then kill what has not. A signal meanwhile ends the patience.

        A process that even SIGKILL does not end at once (in the kernel, on a dead disk) is left to the kernel.
        """
        loop = asyncio.get_running_loop()
        self._tell(self._posts(), Stop())
        deadline_s = loop.time() + (_STOP_S if with_patience else _HASTY_STOP_S)
        killed = False
        while any(post.child is not None for post in self._posts()):
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
                    deadline_s = loop.time() + _STOP_S
                    for post in self._posts():
                        if post.child is not None:
                            _log.warning("%s does not stop and is killed", post)
                            post.child.kill()
                case _:
                    continue
