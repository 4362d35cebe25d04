"""Local service: one of the caller's own on this machine, for as long as a block runs.

The service is a child process, `python -m pagewire.scheduler_svc serve`, on free ports of 127.0.0.1. It ends with the
block; it ends too when this process is killed, because it watches a pipe whose other end only this process holds. It
has a session of its own, so that Ctrl-C in a terminal reaches the caller alone.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from pagewire.client import installed
from pagewire.client.aio import AsyncClient
from pagewire.client.errors import LaunchError
from pagewire.client.json_text import from_json
from pagewire.client.sync import Client

DEFAULT_MODEL = "smollm2-135m"

_STOP_TIMEOUT_S = 15.0
_LOG_TAIL_BYTES = 4096
_MAX_READY_BYTES = 65536

Setting = str | int | float | bool
"""A setting of `pagewire serve`, by its name with underscores: `max_model_len=2048` is `--max-model-len=2048`."""


@dataclass(frozen=True, slots=True)
class Ready:
    """What the service says when it serves."""

    address: str
    admin_address: str
    model: str
    pid: int


class LocalService:
    """One service process. `start` and `stop` may be called from different threads; `stop` ends a `start` under way."""

    def __init__(
        self, model: str, settings: Mapping[str, Setting], *, quiet: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`quiet`: keep what the service says on stderr for an error message, rather than let it through."""
        self._command = _command({"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0", "model": model, **settings})
        self._clock = clock
        self._log: IO[bytes] | None = tempfile.TemporaryFile() if quiet else None  # noqa: SIM115  # closed by stop
        self._process: subprocess.Popen[bytes] | None = None
        self._parent_end = -1

    def start(self, timeout_s: float | None) -> Ready:
        """Start the process and wait until it serves. Raises LaunchError; call `stop` then too."""
        gone = installed.missing("scheduler")
        if gone:
            raise LaunchError(f"a service needs {', '.join(gone)}: pip install 'pagewire[all]'")
        ready, ready_child = os.pipe()
        parent_child, self._parent_end = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*self._command, f"--ready-fd={ready_child}", f"--parent-fd={parent_child}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # a line that says what the descriptor says
                stderr=self._log,
                pass_fds=(ready_child, parent_child),
                start_new_session=True,
            )
        finally:
            os.close(ready_child)
            os.close(parent_child)
        try:
            return self._read_ready(ready, timeout_s)
        finally:
            os.close(ready)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to all of its processes where that takes too long. Harmless when repeated."""
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            finally:
                self._kill()
        if self._parent_end >= 0:
            os.close(self._parent_end)
            self._parent_end = -1
        if self._log is not None:
            self._log.close()
            self._log = None

    def _kill(self) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _read_ready(self, ready: int, timeout_s: float | None) -> Ready:
        deadline = None if timeout_s is None else self._clock() + timeout_s
        line = b""
        while not line.endswith(b"\n") and len(line) < _MAX_READY_BYTES:
            left = None if deadline is None else max(0.0, deadline - self._clock())
            if not select.select([ready], [], [], left)[0]:
                raise LaunchError(f"the service did not get ready within {timeout_s:g} s{self._last_words()}")
            received = os.read(ready, 4096)
            if not received:
                assert self._process is not None
                status = self._process.wait()
                raise LaunchError(f"the service ended with status {status}{self._last_words()}")
            line += received
        try:
            said = from_json(line)
            return Ready(str(said["address"]), str(said["admin_address"]), str(said["model"]), int(said["pid"]))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise LaunchError(f"the service said {line[:200]!r} where its address was due") from error

    def _last_words(self) -> str:
        """The last line of its log, where that was kept."""
        if self._log is None:
            return ""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - _LOG_TAIL_BYTES))
        lines = self._log.read().decode(errors="replace").split("\n")
        return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")


@contextmanager
def local(
    model: str = DEFAULT_MODEL, *, quiet: bool = True, start_timeout_s: float | None = None, **settings: Setting
) -> Iterator[Client]:
    """Serve a model on this machine and yield a client for it; both end with the block.

    The first use of a model fetches it, so there is no time limit by default. `quiet=False` shows progress and logs on
    stderr. Raises LaunchError with the service's last words where it does not start.
    """
    service = LocalService(model, {"log_level": "warning", **settings}, quiet=quiet)
    try:
        with Client(service.start(start_timeout_s).address) as client:
            yield client
    finally:
        service.stop()


@asynccontextmanager
async def local_async(
    model: str = DEFAULT_MODEL, *, quiet: bool = True, start_timeout_s: float | None = None, **settings: Setting
) -> AsyncIterator[AsyncClient]:
    """`local` for asyncio."""
    service = LocalService(model, {"log_level": "warning", **settings}, quiet=quiet)
    try:
        ready = await asyncio.to_thread(service.start, start_timeout_s)
        async with AsyncClient(ready.address) as client:
            yield client
    finally:
        await asyncio.to_thread(service.stop)


def _command(settings: Mapping[str, Setting]) -> list[str]:
    flags = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        match value:
            case True:
                flags.append(f"--{flag}")
            case False:
                flags.append(f"--no-{flag}")
            case _:
                flags.append(f"--{flag}={value}")
    return [sys.executable, "-P", "-m", "pagewire.scheduler_svc", "serve", *flags]
