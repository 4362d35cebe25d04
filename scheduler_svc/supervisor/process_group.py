"""The process group: every process of a server. Starts, tells and stops them.

It owns the managed processes and what a child is started with; what a child says goes into the supervisor's queue of
events, with its process and incarnation. It decides nothing: when to start a process, and what its end means, is the
supervisor's.
"""

import asyncio
import logging
import signal
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from pagewire.scheduler_svc.supervisor.child import Child, Exited, SpawnedProcess, Starter
from pagewire.scheduler_svc.supervisor.events import Event, FromProcess, Outcome, Signalled
from pagewire.scheduler_svc.supervisor.fork_server import ForkServer
from pagewire.scheduler_svc.supervisor.host import Host
from pagewire.scheduler_svc.supervisor.managed_process import ManagedProcess, Role
from pagewire.scheduler_svc.supervisor.server_plan import ServerPlan
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


class Ranks:
    """The worker's ranks that this server starts itself, as one. They begin together and end together. Only the
    supervisor changes it.

    Ranks that are left of a group cannot take another rank in: their collectives wait for one that is gone. So the loss
    of one is the loss of all, and so is, for several ranks, the loss of the engine: it may have given its last plan to
    some.
    """

    def __init__(self, processes: Sequence[ManagedProcess]) -> None:
        self.processes = processes
        self.is_ending = False
        """Some have ended, and the others were told to."""
        self.restart_delay_s = 0.0
        """How long to wait, once all have ended."""

    @property
    def incarnation(self) -> int:
        """Of all of them."""
        return self.processes[0].incarnation

    @property
    def all_ended(self) -> bool:
        """Whether no process is left."""
        return all(process.child is None for process in self.processes)

    def lose(self) -> None:
        """One has ended by itself. Raises RestartLimit where that has happened too often in a row, to any of them."""
        self.end(self.processes[0].restart_delay_s())

    def end(self, restart_delay_s: float) -> None:
        """Ask those that are left to stop."""
        self.is_ending = True
        self.restart_delay_s = restart_delay_s
        for process in self.processes:
            if process.child is not None:
                process.child.send(Stop())

    def kill(self) -> None:
        """End those that have not stopped: they wait for each other within a step."""
        for process in self.processes:
            if process.child is not None:
                _log.warning("%s does not stop and is killed", process)
                process.child.kill()


class ProcessGroup:
    """All processes of one server. Only the supervisor uses it."""

    def __init__(self, plan: ServerPlan, host: Host, events: asyncio.Queue[Event]) -> None:
        """`events` gets a FromProcess for whatever a child says; `stop_all` reads it in the supervisor's stead."""
        self._plan = plan
        self._host = host
        self._events = events
        commands = host.commands
        self._worker_forks = ForkServer((*commands.worker_forks, "--device", plan.device), host.environ, "workers")
        self._frontend_forks = ForkServer(commands.frontend_forks, host.environ, "frontends")
        self.engine = self._process(Role.ENGINE, 0)
        self.ranks = Ranks([self._process(Role.WORKER, rank) for rank in range(plan.num_local_ranks)])
        self.frontends = [self._process(Role.FRONTEND, index) for index in range(plan.settings.frontends)]

    def _process(self, role: Role, index: int) -> ManagedProcess:
        settings = self._plan.settings
        watchdog = Watchdog(settings.hang_timeout_s, TICK_S)
        return ManagedProcess(role, index, settings.max_restarts, watchdog, self._host.clock)

    @property
    def processes(self) -> list[ManagedProcess]:
        """All of them."""
        return [self.engine, *self.ranks.processes, *self.frontends]

    async def start(self, process: ManagedProcess) -> None:
        """Start a process's next incarnation. Raises CannotStart."""
        process.incarnation += 1
        launch = self._launch(process)
        incarnation = process.incarnation
        try:
            file = self._host.runtime_dir.write(f"{process.name}.json", msgspec.json.encode(launch))
            child = await Child.start(
                self._starter(process.role, file),
                lambda event: self._events.put_nowait(FromProcess(process, incarnation, event)),
            )
        except OSError as error:
            raise CannotStart(f"{process} cannot be started: {error}") from error
        process.started(child)
        self._host.totals.started(process.role.value, process.index, incarnation)
        _log.debug("%s started as %s, incarnation %d", process, child.name, incarnation)

    def _starter(self, role: Role, launch_file: Path) -> Starter:
        commands = self._host.commands
        match role:
            case Role.FRONTEND:
                return partial(self._frontend_forks.start, launch_file)
            case Role.WORKER if self._plan.device == "cpu":
                return partial(self._worker_forks.start, launch_file)
            case Role.WORKER | Role.ENGINE:
                command = commands.worker if role is Role.WORKER else commands.engine
                argv = (*command, "--launch", str(launch_file), "--lifeline-fd")
                return partial(SpawnedProcess.start, argv, environ=self._host.environ)

    def _launch(self, process: ManagedProcess) -> msgspec.Struct:
        match process.role:
            case Role.ENGINE:
                return self._plan.engine_launch(process.incarnation)
            case Role.WORKER:
                return self._plan.worker_launch(process.index, process.incarnation, process.num_blocks or None)
            case Role.FRONTEND:
                known = process.addresses or self.frontends[0].addresses
                return self._plan.frontend_launch(process.index, process.incarnation, known)

    def tell(self, processes: Iterable[ManagedProcess], message: ToChild) -> None:
        """Say something to those of the processes that run."""
        for process in processes:
            if process.child is not None:
                process.child.send(message)

    def abort(self, process: ManagedProcess, reason: str) -> None:
        """End a process that stands still; its end comes as any other."""
        if process.child is not None:
            _log.error("%s %s and is ended", process, reason)
            process.failure = reason
            process.child.abort()

    async def stop_all(self, outcome: Outcome | None) -> None:
        """Ask all to stop, then kill what has not. A signal meanwhile ends the patience. No outcome: a bug ends us.

        A process that even SIGKILL does not end at once (in the kernel, on a dead disk) is left to the kernel.
        """
        fork_servers = (self._worker_forks, self._frontend_forks)
        for fork_server in fork_servers:
            fork_server.give_up()
        await self._stop_processes(outcome)
        await asyncio.gather(*[fork_server.close() for fork_server in fork_servers])

    async def _stop_processes(self, outcome: Outcome | None) -> None:
        loop = asyncio.get_running_loop()
        with_patience = outcome is not None and not outcome.in_haste
        self.tell(self.processes, Stop(worker_lost=outcome is None or outcome.gave_up))
        deadline_s = loop.time() + (STOP_S if with_patience else _HASTY_STOP_S)
        killed = False
        while any(process.child is not None for process in self.processes):
            try:
                event = await asyncio.wait_for(self._events.get(), max(0.0, deadline_s - loop.time()))
            except TimeoutError:
                event = None
            match event:
                case FromProcess(process, incarnation, Exited()) if incarnation == process.incarnation:
                    process.child = None
                case None if killed:
                    return
                case Signalled(signal.SIGHUP):
                    continue  # it ends nothing, so it hastens nothing
                case None | Signalled():
                    killed = True
                    deadline_s = loop.time() + STOP_S
                    for process in self.processes:
                        if process.child is not None:
                            _log.warning("%s does not stop and is killed", process)
                            process.child.kill()
                case _:
                    continue
