"""The supervisor: starts the engine, the workers and the frontends, watches them, and ends them.

It owns the process group, the phase of the server and its exit status, and knows nothing of requests. One loop takes
events from one queue (what a child said, an exit, a signal, a timer) and is the only writer of all its state:

    STARTING ── all ready ──▶ SERVING ── signal, or an operator's Drain ──▶ DRAINING ── all drained ──▶ end, status 0
       └──────────────────── an operator's Drain ─────────────────────────────▲

- While STARTING, a child's end is the server's end: status 1, and the reason on stderr.
- Later, a child that ends is started again with the next incarnation. The engine is told of a lost worker; workers and
  frontends are told of a new engine. Ranks of one model end and begin together. More than `max_restarts` in a row
  without progress end the server with status 1; streams that run then end with UNAVAILABLE, reason WORKER_LOST.
- A child that stands still without ending is ended: the engine and frontends by their silence, workers when the engine
  says that a step is overdue. What follows is what follows any other end.
- A frontend that ends while DRAINING before it has drained is not started again: its streams are lost, and the status
  is 1.
- A signal while STARTING, and a second signal at any time, ends the server at once with 128 + its number. SIGHUP is
  such a signal while STARTING alone: later it has the frontends read their keys and certificates again.
- However the supervisor ends, no child outlives it: a child reads end-of-file on its lifeline and ends.
"""

import asyncio
import logging
import signal
from collections.abc import Iterable

from pagewire.scheduler_svc.supervisor.child import ChildEvent, Exited
from pagewire.scheduler_svc.supervisor.events import (
    DrainOverdue,
    Event,
    FromProcess,
    Outcome,
    Phase,
    RanksOverdue,
    RestartDue,
    Signalled,
    Tick,
)
from pagewire.scheduler_svc.supervisor.host import Host
from pagewire.scheduler_svc.supervisor.managed_process import ManagedProcess, RestartLimit, Role
from pagewire.scheduler_svc.supervisor.process_group import STOP_S, TICK_S, CannotStart, ProcessGroup
from pagewire.scheduler_svc.supervisor.server_plan import RANKS_STORE, Addresses, ServerPlan
from pagewire.wire.control import (
    Alive,
    Drain,
    Drained,
    DrainRequested,
    EngineRestarted,
    Failed,
    Loading,
    Ready,
    Reload,
    Served,
    StepOverdue,
    WorkerLost,
)
from pagewire.wire.measures import EngineMeasured, FrontendMeasured

_log = logging.getLogger(__name__)

_RANKS_STOP_S = 2.0
"""How long ranks of a group that has lost one may take to stop: those that wait for it within a step cannot obey."""
_REFRESH_TICKS = 4 * 3600
"""Between two times that the runtime directory is made to look used."""
_DRAIN_SLACK_S = 5.0
"""How much longer than delay and grace frontends may take to drain."""


class Supervisor:
    """Runs one server from start to end: `await Supervisor(plan, host).run()`."""

    def __init__(self, plan: ServerPlan, host: Host) -> None:
        self._plan = plan
        self._host = host
        self._settings = plan.settings
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._phase = Phase.STARTING
        self._outcome: Outcome | None = None
        self._was_signalled = False
        self._ticks = 0
        self._undrained: list[str] = []
        """Frontends that ended with what they still had."""
        self._group = ProcessGroup(plan, host, self._events)
        self._ranks = self._group.ranks
        self._frontends = self._group.frontends

    async def run(self) -> Outcome:
        """Serve until the end, and leave no child behind."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                loop.add_signal_handler(number, self._events.put_nowait, Signalled(number))
        self._tick_later()
        try:
            # The other frontends follow the first: with port 0 it alone can say which port they share.
            await self._start((self._group.engine, *self._ranks.processes, self._frontends[0]))
            while self._outcome is None:
                # Whatever is done about an event is done before the next is looked at.
                await self._handle(await self._events.get())
        finally:
            self._host.progress.close()
            self._host.notifier.notify("STOPPING=1")
            await self._group.stop_all(self._outcome)
        return self._outcome

    async def _start(self, processes: Iterable[ManagedProcess]) -> None:
        try:
            for process in processes:
                await self._group.start(process)
        except CannotStart as error:
            self._outcome = Outcome(1, str(error), gave_up=True)

    def _tick_later(self) -> None:
        asyncio.get_running_loop().call_later(TICK_S, self._events.put_nowait, Tick())

    async def _handle(self, event: Event) -> None:
        match event:
            case Tick():
                self._on_tick()
            case Signalled(number):
                self._on_signal(number)
            case RestartDue(process):
                await self._restart(process)
            case RanksOverdue(incarnation):
                if self._ranks.is_ending and incarnation == self._ranks.incarnation:
                    self._ranks.kill()
            case DrainOverdue():
                waiting = ", ".join(str(process) for process in self._frontends if not process.drained)
                self._outcome = Outcome(1, f"{waiting} did not drain in time")
            case FromProcess(process, incarnation, _) if incarnation != process.incarnation:
                return
            case FromProcess(process, _, news):
                process.spoke()
                await self._on_news(process, news)

    async def _on_news(self, process: ManagedProcess, news: ChildEvent) -> None:
        match news:
            case Exited():
                self._on_exit(process, news)
            case Alive():
                pass  # it has been heard
            case EngineMeasured() | FrontendMeasured():
                self._host.totals.measured(process.index, news)
            case StepOverdue(waited_s, incarnation):
                if self._ranks.is_ending or incarnation != self._ranks.incarnation:
                    _log.warning("workers of incarnation %d are overdue and end or have ended already", incarnation)
                    return
                for worker in self._ranks.processes:
                    self._group.abort(worker, f"has held a step for {waited_s:g} s")
            case Loading(stage, fraction):
                # The other ranks load as long; rank 0 says whom it waits for.
                if self._phase is Phase.STARTING and process is self._ranks.processes[0]:
                    self._host.progress.report(stage, fraction)
            case Ready():
                await self._on_ready(process, news)
            case Failed(reason):
                process.failure = reason
                if self._phase is Phase.STARTING:
                    self._outcome = Outcome(1, f"{process} cannot start: {reason}")
            case Served():
                for served in (process, *self._ranks.processes):
                    served.has_served()
            case DrainRequested(grace_s):
                if self._phase is not Phase.DRAINING:
                    _log.info("draining, as an operator asked")
                    self._drain(self._settings.drain_grace_s if grace_s is None else grace_s)
            case Drained(cut_streams):
                if cut_streams:
                    _log.warning("%s cut %d streams that the grace time did not suffice for", process, cut_streams)
                self._on_drained(process)

    def _on_tick(self) -> None:
        self._tick_later()
        # systemd's watchdog is for what no restart here mends: it hears nothing while the engine's loop stands still.
        if self._phase is not Phase.STARTING and self._group.engine.has_spoken():
            self._host.notifier.notify("WATCHDOG=1")
        self._ticks += 1
        if self._ticks % _REFRESH_TICKS == 0:
            self._host.runtime_dir.refresh()
        self._look_for_sockets()
        for process in self._group.processes:
            if process.is_stuck():
                self._group.abort(process, f"has made no progress for {self._settings.hang_timeout_s:g} s")

    def _look_for_sockets(self) -> None:
        """Processes that are connected stay so without the files, but none that is started again would come in: a new
        engine binds them anew."""
        engine, directory = self._group.engine, self._host.runtime_dir
        if engine.child is None or not engine.ready or engine.failure:
            return
        if gone := directory.missing(self._plan.sockets):
            engine.failure = (
                f"{', '.join(gone)} in {directory.path} was removed, perhaps by a cleaner of temporary files"
            )
            _log.error("%s; the engine is started again, which makes it anew", engine.failure)
            engine.child.kill()

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGHUP and self._phase is not Phase.STARTING:
            _log.info("SIGHUP: files of keys, limits and certificates are read again")
            self._group.tell(self._frontends, Reload())
            return
        if self._phase is Phase.STARTING or self._was_signalled:
            self._outcome = Outcome(128 + number, in_haste=True)
        elif self._phase is Phase.SERVING:
            _log.info("draining after %s; a second one ends at once", signal.Signals(number).name)
            self._drain(self._settings.drain_grace_s)
        else:  # as where a pod's hook has ordered it before
            name = signal.Signals(number).name
            _log.info("draining already, as an operator asked; a signal after this %s ends at once", name)
        self._was_signalled = True

    async def _on_ready(self, process: ManagedProcess, ready: Ready) -> None:
        was_ready = process.ready
        process.became_ready()
        if process.role is Role.FRONTEND:
            process.addresses = Addresses(ready.address, ready.admin_address)
        process.num_blocks = process.num_blocks or ready.num_blocks
        if self._phase is not Phase.STARTING:
            if not was_ready:
                _log.info("%s is back", process)
            return
        if process is self._frontends[0]:
            await self._start(self._frontends[1:])
        if all(known.ready for known in self._group.processes):
            self._phase = Phase.SERVING
            self._host.progress.close()
            self._host.notifier.notify("READY=1", "STATUS=serving")
            assert self._frontends[0].addresses is not None
            self._host.announce(self._frontends[0].addresses)

    def _on_exit(self, process: ManagedProcess, exited: Exited) -> None:
        reason = f"{exited}: {process.failure}" if process.failure else str(exited)
        process.child = None
        self._host.totals.ended(process.role.value)
        if self._phase is Phase.STARTING:
            self._outcome = self._outcome or Outcome(1, f"{process} {reason}, before it was ready")
            return
        if self._phase is Phase.DRAINING and process.role is Role.FRONTEND:
            if not process.drained:
                _log.error("%s %s while draining", process, reason)
                self._undrained.append(str(process))
            self._on_drained(process)
            return
        if process.role is Role.WORKER and self._ranks.is_ending:
            _log.info("%s %s, as its group did", process, reason)
            process.ended()
            self._restart_ended_ranks()
            return
        _log.error("%s %s", process, reason)
        try:
            if process.role is Role.WORKER:
                self._ranks.lose()
            else:
                delay_s = process.restart_delay_s()
        except RestartLimit:
            limit = f"{self._settings.max_restarts} times and never came to serve, the limit (max_restarts)"
            self._outcome = Outcome(1, f"{process} {reason}; it was started again {limit}", gave_up=True)
            return
        process.ended()
        if process.role is Role.WORKER:
            self._end_ranks()
            return
        if process.role is Role.ENGINE and self._plan.world_size > 1 and not self._ranks.is_ending:
            self._ranks.end(0.0)
            self._end_ranks()
        asyncio.get_running_loop().call_later(delay_s, self._events.put_nowait, RestartDue(process))

    def _end_ranks(self) -> None:
        """The group ends: nothing that it still has in flight will be answered."""
        for rank in range(self._plan.world_size):
            self._group.tell([self._group.engine], WorkerLost(rank))
        overdue = RanksOverdue(self._ranks.incarnation)
        asyncio.get_running_loop().call_later(_RANKS_STOP_S, self._events.put_nowait, overdue)
        self._restart_ended_ranks()

    def _restart_ended_ranks(self) -> None:
        if self._ranks.all_ended:
            due = RestartDue(self._ranks.processes[0])
            asyncio.get_running_loop().call_later(self._ranks.restart_delay_s, self._events.put_nowait, due)

    async def _restart(self, process: ManagedProcess) -> None:
        if self._phase is Phase.DRAINING and process.role is Role.FRONTEND:
            return
        if process.role is Role.WORKER:
            self._ranks.is_ending = False
            self._host.runtime_dir.remove(RANKS_STORE)
            await self._start(self._ranks.processes)
            return
        await self._start([process])
        if process.role is Role.ENGINE:
            told = self._frontends if self._plan.world_size > 1 else [*self._ranks.processes, *self._frontends]
            self._group.tell(told, EngineRestarted(process.incarnation))
            if self._phase is Phase.DRAINING:
                self._group.tell([process], Drain(0.0, 0.0))

    def _drain(self, grace_s: float) -> None:
        self._phase = Phase.DRAINING
        delay_s = self._settings.drain_delay_s
        self._host.notifier.notify("STOPPING=1")
        self._host.notifier.extend(delay_s + grace_s + _DRAIN_SLACK_S + 2 * STOP_S, "draining")
        self._group.tell([self._group.engine, *self._frontends], Drain(delay_s, grace_s))
        asyncio.get_running_loop().call_later(
            delay_s + grace_s + _DRAIN_SLACK_S, self._events.put_nowait, DrainOverdue()
        )
        for process in self._frontends:
            if process.child is None:  # its streams broke when it ended, and those who had them do not find it again
                self._undrained.append(str(process))
                self._on_drained(process)

    def _on_drained(self, process: ManagedProcess) -> None:
        process.drained = True
        if all(frontend.drained for frontend in self._frontends):
            lost = ", ".join(self._undrained)
            self._outcome = Outcome(1, f"{lost} ended before the streams had: they are lost") if lost else Outcome(0)
