"""A remote rank, `pagewire worker`: keeps one rank of a model running on a host that no supervisor reaches.

systemd, Kubernetes or a person starts it. It starts the worker process and starts it again, without limit, whenever its
group ends: the server's supervisor, which starts rank 0, decides how often a group may. It ends when it is told to,
with status 0; and with status 1 where this rank cannot be one of the group, because it has other settings, another
model or no room, which somebody must mend.
"""

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from functools import partial

import msgspec

from pagewire.scheduler_svc.startup_errors import SettingsError
from pagewire.scheduler_svc.supervisor.child import Child, ChildEvent, Exited, SpawnedProcess
from pagewire.scheduler_svc.supervisor.events import Outcome
from pagewire.scheduler_svc.supervisor.host import Host
from pagewire.scheduler_svc.supervisor.managed_process import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, SERVED_S
from pagewire.scheduler_svc.supervisor.server_plan import ServerPlan
from pagewire.wire.control import Failed, Loading, Ready, Stop
from pagewire.wire.launch import UNKNOWN_INCARNATION, RankGroup, WorkerLaunch
from pagewire.wire.lifeline import RANKS_LOST_STATUS

_log = logging.getLogger(__name__)

_STOP_S = 5.0
_CANNOT_LOAD_STATUS = 1
"""Of a worker process."""


def remote_launch(plan: ServerPlan, rank: int) -> WorkerLaunch:
    """What this rank is started with: as the server's own ranks are, by the same settings. Raises SettingsError for a
    rank that the server starts itself."""
    settings = plan.settings
    if not plan.num_local_ranks <= rank < plan.world_size:
        raise SettingsError(
            f"--rank {rank} is not one of the last remote_workers = {settings.remote_workers} of "
            f"tensor_parallel_size = {plan.world_size} ranks, numbered from 0: the server starts the others itself"
        )
    return msgspec.structs.replace(
        plan.worker_launch(rank, UNKNOWN_INCARNATION),
        group=RankGroup(store=f"tcp://{settings.distributed_address}", num_local_ranks=1),
    )


class RemoteRank:
    """One rank from start to end: `await RemoteRank(launch, host).run()`."""

    def __init__(self, launch: WorkerLaunch, host: Host, clock: Callable[[], float] = time.monotonic) -> None:
        self._launch = launch
        self._host = host
        self._clock = clock
        self._events: asyncio.Queue[ChildEvent | None] = asyncio.Queue()
        """What the worker says; none for a signal."""
        self._failure = ""
        self._ready_since_s: float | None = None
        self._backoff_s = 0.0

    async def run(self) -> Outcome:
        """Run the rank until told to stop, and leave no process behind."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._events.put_nowait, None)
        while True:
            child = await self._start()
            outcome = await self._watch(child)
            if outcome is not None:
                return outcome
            try:
                if await asyncio.wait_for(self._events.get(), self._backoff_s) is None:
                    return Outcome(0)
            except TimeoutError:
                continue

    async def _start(self) -> Child:
        self._failure = ""
        self._ready_since_s = None
        file = self._host.runtime_dir.write("worker.json", msgspec.json.encode(self._launch))
        argv = (*self._host.commands.worker, "--launch", str(file), "--lifeline-fd")
        start = partial(SpawnedProcess.start, argv, environ=self._host.environ)
        return await Child.start(start, self._events.put_nowait)

    async def _watch(self, child: Child) -> Outcome | None:
        """Until the process has ended; none where another is to be started, after `_backoff_s`."""
        while True:
            match event := await self._events.get():
                case None:
                    await self._stop(child)
                    return Outcome(0)
                case Loading(stage, fraction):
                    self._host.progress.report(stage, fraction)
                case Ready():
                    self._ready_since_s = self._clock()
                    if self._launch.earlier_num_blocks is None and event.num_blocks:
                        self._launch = msgspec.structs.replace(self._launch, earlier_num_blocks=event.num_blocks)
                    self._host.progress.close()
                    self._host.notifier.notify("READY=1", "STATUS=serving")
                    _log.info("rank %d has joined its group", self._launch.rank)
                case Failed(message):
                    self._failure = message
                case Exited():
                    return self._after(event)
                case _:
                    continue

    def _after(self, exited: Exited) -> Outcome | None:
        reason = f"{exited}: {self._failure}" if self._failure else str(exited)
        if exited.status == _CANNOT_LOAD_STATUS:
            return Outcome(1, f"rank {self._launch.rank} cannot start: {self._failure or exited}")
        served = self._ready_since_s is not None and self._clock() - self._ready_since_s >= SERVED_S
        if served or exited.status == RANKS_LOST_STATUS:
            self._backoff_s = FIRST_BACKOFF_S
        else:
            self._backoff_s = min(LONGEST_BACKOFF_S, max(FIRST_BACKOFF_S, 2 * self._backoff_s))
        _log.warning("rank %d %s; it is started again", self._launch.rank, reason)
        return None

    async def _stop(self, child: Child) -> None:
        """Ask it to stop, and kill it if it does not in time or a second signal comes."""
        self._host.notifier.notify("STOPPING=1")
        child.send(Stop())
        try:
            async with asyncio.timeout(_STOP_S):
                while (event := await self._events.get()) is not None:
                    if isinstance(event, Exited):
                        return
        except TimeoutError:
            pass
        child.kill()
        while not isinstance(await self._events.get(), Exited):
            pass
