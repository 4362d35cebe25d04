"""The fork server with real processes: workers that it forks are children as any others, and it may end at any time."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import psutil
import pytest
from support.worker_process import ScriptedEngine, ipc_address, sim_launch

from pagewire.scheduler_svc.supervisor.child import Child, ChildEvent, Exited
from pagewire.scheduler_svc.supervisor.fork_server import ForkServer
from pagewire.wire.control import Failed, Ready, Stop

LIMIT_S = 20.0
COMMAND = (sys.executable, "-P", "-m", "pagewire.worker", "fork-server", "--device", "sim")


class Told:
    """A worker, and what it has said."""

    def __init__(self) -> None:
        self.child: Child
        self._events: asyncio.Queue[ChildEvent] = asyncio.Queue()
        self.tell = self._events.put_nowait

    async def until(self, *kinds: type[ChildEvent]) -> ChildEvent:
        """Its next event of one of these kinds."""
        async with asyncio.timeout(LIMIT_S):
            while not isinstance(event := await self._events.get(), kinds):
                pass
            return event


class Forking:
    """A fork server of sim workers, and an engine's address for them."""

    def __init__(
        self, folder: Path, address: str, environ: dict[str, str] | None = None, command: tuple[str, ...] = COMMAND
    ) -> None:
        self.server = ForkServer(command, {**os.environ, **(environ or {})}, "workers")
        self._folder = folder
        self._address = address
        self._asked = 0

    async def worker(self, launch: bytes | None = None) -> Told:
        """Ask for another."""
        self._asked += 1
        told, file = Told(), self._folder / f"worker-{self._asked}.json"
        file.write_bytes(launch or msgspec.json.encode(sim_launch(self._address, incarnation=self._asked)))
        told.child = await Child.start(partial(self.server.start, file), told.tell)
        return told


@asynccontextmanager
async def forking(
    folder: Path, environ: dict[str, str] | None = None, command: tuple[str, ...] = COMMAND
) -> AsyncIterator[Forking]:
    with ipc_address() as address, ScriptedEngine(address):
        running = Forking(folder, address, environ, command)
        try:
            yield running
        finally:
            await running.server.close()
    assert not offspring()


def offspring() -> list[psutil.Process]:
    """Fork servers and workers of this process."""
    return [child for child in psutil.Process().children(recursive=True) if "pagewire.worker" in child.cmdline()]


def test_workers_are_forked_named_and_ended_each_by_itself(tmp_path: Path) -> None:
    async def test() -> None:
        async with forking(tmp_path) as made:
            first, second = await made.worker(), await made.worker()
            for worker in (first, second):
                assert isinstance(await worker.until(Ready), Ready)
            (server,) = psutil.Process().children()
            workers = server.children()
            for number, process in enumerate(sorted(workers, key=lambda worker: worker.pid), start=1):
                assert f"worker-{number}.json" in " ".join(process.cmdline())
                assert "run" in process.cmdline()
                assert os.getpgid(process.pid) == process.pid
            assert server.num_threads() == 1
            server.terminate()  # means them, whom it would take along
            first.child.kill()
            assert await first.until(Exited) == Exited(-signal.SIGKILL)
            second.child.send(Stop())
            assert await second.until(Exited) == Exited(0)
            first.child.kill()  # both are reaped: it must reach nobody
            third = await made.worker()
            await third.until(Ready)
            third.child.abort()
            assert await third.until(Exited) == Exited(-signal.SIGABRT)

    asyncio.run(test())


def test_where_no_process_can_be_made_those_that_run_live_on(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "real, made = os.fork, []\n"
        "def fork():\n"
        "    if made:\n"
        "        raise BlockingIOError(11, 'no more processes')\n"
        "    made.append(True)\n"
        "    return real()\n"
        "os.fork = fork\n"
        "from pagewire.worker.__main__ import main\n"
        "sys.exit(main())"
    )

    async def test() -> None:
        async with forking(tmp_path, command=(sys.executable, "-c", program, *COMMAND[4:])) as made:
            first = await made.worker()
            await first.until(Ready)
            second = await made.worker()
            assert await second.until(Exited) == Exited(1)
            first.child.send(Stop())
            assert await first.until(Exited) == Exited(0)

    asyncio.run(test())


def test_a_worker_that_cannot_load_says_why(tmp_path: Path) -> None:
    async def test() -> None:
        async with forking(tmp_path) as made:
            worker = await made.worker(b"{}")
            failed = await worker.until(Failed)
            assert isinstance(failed, Failed)
            assert "the launch file" in failed.message
            assert await worker.until(Exited) == Exited(1)

    asyncio.run(test())


def test_a_fork_server_that_is_killed_takes_its_workers_along_and_the_next_begins_another(tmp_path: Path) -> None:
    async def test() -> None:
        async with forking(tmp_path) as made:
            workers = [await made.worker(), await made.worker()]
            for worker in workers:
                await worker.until(Ready)
            (server,) = psutil.Process().children()
            forked = server.children()
            server.kill()
            asked_at_once = await made.worker()
            for worker in workers:
                assert await worker.until(Exited) == Exited(-signal.SIGKILL)
            assert not psutil.wait_procs(forked, LIMIT_S)[1]
            # Whether the end had been seen or not: it is forked, or ended as the others.
            if isinstance(await asked_at_once.until(Ready, Exited), Exited):
                asked_at_once = await made.worker()
                await asked_at_once.until(Ready)
            asked_at_once.child.kill()
            await asked_at_once.until(Exited)

    asyncio.run(test())


@pytest.mark.parametrize("how", ["kill", "close"])
def test_a_worker_that_is_not_there_yet_can_be_ended(how: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with forking(tmp_path) as made:
            worker = await made.worker()
            if how == "kill":
                worker.child.kill()
            else:
                await made.server.close()
            exited = await worker.until(Exited)
            assert isinstance(exited, Exited)
            assert exited.status in (0, -signal.SIGKILL)

    asyncio.run(test())


def test_a_fork_server_that_cannot_begin_ends_its_workers_with_its_own_status(tmp_path: Path) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit(5)")

    async def test() -> None:
        async with forking(tmp_path, {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}) as made:
            assert await (await made.worker()).until(Exited) == Exited(5)

    asyncio.run(test())
