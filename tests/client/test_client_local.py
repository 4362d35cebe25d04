"""A service of one's own: started, used and ended, with the real service on its `sim` device."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from pagewire.client import Delta, LaunchError, local, local_async
from pagewire.client.local import LocalService

SIM = {"device": "sim", "max_model_len": 256}


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PAGEWIRE_")]:
        monkeypatch.delenv(name)


def descendants() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def test_it_serves_and_leaves_nothing_behind() -> None:
    before = descendants()
    with local("random:tiny", **SIM) as client:
        during = descendants() - before
        assert len(during) >= 3
        assert client.model().limits.max_model_len == 256
        result = client.generate([1, 2, 3], max_tokens=5, ignore_eos=True)
        assert len(result.token_ids) == 5
    assert descendants() == before
    assert not any(psutil.pid_exists(pid) for pid in during)


def test_the_same_for_asyncio() -> None:
    async def use() -> int:
        async with local_async("random:tiny", **SIM) as client:
            return len((await client.stream([1, 2, 3], max_tokens=5, ignore_eos=True).result()).token_ids)

    before = descendants()
    assert asyncio.run(use()) == 5
    assert descendants() == before


def test_it_ends_when_the_block_fails() -> None:
    before = descendants()
    with pytest.raises(ZeroDivisionError), local("random:tiny", **SIM):
        _ = 1 / 0
    assert descendants() == before


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("no/such/thing", {}, "ended with status 1: .*no/such/thing"),
        ("random:tiny", {"max_model_len": 0}, "ended with status 2: .*max_model_len = 0 must be"),
        ("random:tiny", {"nonsense": 1}, "ended with status 2: .*--nonsense"),
    ],
)
def test_a_service_that_cannot_start_says_why(model: str, settings: dict[str, int], message: str) -> None:
    before = descendants()
    with pytest.raises(LaunchError, match=message), local(model, device="sim", **settings):
        pass
    assert descendants() == before


def test_stopping_ends_a_start_under_way(tmp_path: Path) -> None:
    slow = LocalService("random:tiny", {}, quiet=True)
    slow._command = [sys.executable, "-c", "import time; time.sleep(600)"]
    outcome: list[BaseException] = []

    def start() -> None:
        try:
            slow.start(None)
        except LaunchError as error:
            outcome.append(error)

    starting = threading.Thread(target=start)
    starting.start()
    while slow._process is None:
        starting.join(0.01)
    slow.stop()
    starting.join(10)
    assert len(outcome) == 1


def test_a_start_that_takes_too_long() -> None:
    slow = LocalService("random:tiny", {}, quiet=True)
    slow._command = [sys.executable, "-c", "import time; print('still loading', flush=True); time.sleep(600)"]
    with pytest.raises(LaunchError, match=r"not get ready within 0\.5 s"):
        slow.start(0.5)
    slow.stop()
    assert slow._process is not None
    assert slow._process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("said", ["nonsense", "{}", "[]"])
def test_something_else_than_an_address(said: str) -> None:
    strange = LocalService("random:tiny", {}, quiet=True)
    program = f"import os, sys; os.write(int(sys.argv[1].partition('=')[2]), {said!r}.encode() + b'\\n')"
    strange._command = [sys.executable, "-c", program]
    with pytest.raises(LaunchError, match="where its address was due"):
        strange.start(10)
    strange.stop()


def test_a_killed_frontend_is_not_noticed() -> None:
    """The supervisor starts another one; the stream goes on there, from where it was."""
    with local("random:tiny", **SIM, sim_step_us=2000) as client:
        expected = client.generate([1, 2, 3], max_tokens=200, ignore_eos=True, seed=5)
        stream = client.stream([1, 2, 3], max_tokens=200, ignore_eos=True, seed=5)
        for event in stream:
            if isinstance(event, Delta):
                break
        (frontend,) = [
            process
            for process in psutil.Process().children(recursive=True)
            if {"pagewire.scheduler_svc.frontend", "run"} <= set(process.cmdline())
        ]
        frontend.kill()
        assert stream.result().outputs == expected.outputs
        assert not psutil.pid_exists(frontend.pid)


def test_it_does_not_outlive_a_killed_caller() -> None:
    program = (
        "import sys, time\n"
        "from pagewire.client import local\n"
        "with local('random:tiny', device='sim') as client:\n"
        "    print(client.target, flush=True)\n"
        "    time.sleep(600)\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert caller.stdout is not None
    assert caller.stdout.readline()
    service = psutil.Process(caller.pid).children(recursive=True)
    assert len(service) >= 3
    caller.kill()
    caller.wait(10)
    caller.stdout.close()
    _, alive = psutil.wait_procs(service, timeout=10)
    assert alive == []
