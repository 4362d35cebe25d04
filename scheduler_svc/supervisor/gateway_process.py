"""The gateway beside a server: OpenAI's endpoints over HTTP, a process that begins once the server serves, begins again
where it ends by itself, and ends when the server has ended.

It owns that process and the socket that callers connect to, which is there from before the model is fetched and stays
between two incarnations: callers wait, and are not refused. No server ends for its sake. What the process does it does
not know: it is a client like any other.
"""

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from types import TracebackType

from pagewire.scheduler_svc.startup_errors import SettingsError

_log = logging.getLogger(__name__)

NEEDED = ("starlette", "uvicorn", "msgspec")
"""What the extra `gateway` brings."""

_STDERR = 2
_FIRST_DELAY_S, _MOST_DELAY_S = 0.1, 10.0
_STEADY_S = 60.0
"""One that has run so long begins again without delay."""
_STOP_S = 5.0
_BACKLOG = 1024
_PRIVATE = ("PAGEWIRE_API_KEY", "PAGEWIRE_TARGET")
"""Not for the gateway, which would lend the key to callers who have none."""


class GatewayProcess:
    """Holds the address from its beginning. Use as a context manager, around the server."""

    def __init__(
        self,
        address: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`address` is the value of the setting `openai`. Raises SettingsError where it cannot be listened on, or
        something that a gateway needs is not installed."""
        if missing := [name for name in NEEDED if find_spec(name) is None]:
            raise SettingsError(f"openai = {address!r} needs {', '.join(missing)}: pip install 'pagewire[gateway]'")
        self._command = command
        self._environ = {name: value for name, value in environ.items() if name not in _PRIVATE}
        self._clock = clock
        self._listener = _listening(address)
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        # A gateway reads end-of-file there when this process is gone, however that ended.
        self._lifeline, self._ours = os.pipe()

    @property
    def url(self) -> str:
        """What to give a client of OpenAI's as its base."""
        host, port = self._listener.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"

    def start(self, target: str, admin: str = "") -> None:
        """Serve from the service at this address from now on. In the loop of the server, once.

        Where `admin` is its admin address, the gateway's page shows the engine; to this machine alone, as the admin
        address itself is by default."""
        host = self._listener.getsockname()[0]
        arguments = [f"--target={target}"]
        if admin and ipaddress.ip_address(host).is_loopback:
            arguments.append(f"--admin={admin}")
        self._keeping = asyncio.get_running_loop().create_task(self._keep(arguments))

    async def stop(self) -> None:
        """What it still answers gets five seconds. Harmless where it was never started."""
        if self._keeping is None:
            return
        self._keeping.cancel()
        await asyncio.wait([self._keeping])
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _STOP_S)
            except TimeoutError:
                _log.warning("the gateway does not stop and is killed")
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    async def _keep(self, service: Sequence[str]) -> None:
        delay_s = _FIRST_DELAY_S
        while True:
            began_s = self._clock()
            try:
                self._process = await self._started(service)
            except OSError as error:
                ended = f"cannot be started: {error}"
            else:
                ended = f"ended with status {await self._process.wait()}"
            if self._clock() - began_s > _STEADY_S:
                delay_s = _FIRST_DELAY_S
            _log.error("the gateway %s; it is started again in %.1f s", ended, delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _MOST_DELAY_S)

    async def _started(self, service: Sequence[str]) -> asyncio.subprocess.Process:
        listener = self._listener.fileno()
        arguments = (f"--listen=fd:{listener}", *service, f"--parent-fd={self._lifeline}")
        return await asyncio.create_subprocess_exec(
            *self._command,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=_STDERR,
            pass_fds=(listener, self._lifeline),
            env=self._environ,
            process_group=0,
        )

    def __enter__(self) -> "GatewayProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        os.close(self._lifeline)
        os.close(self._ours)


def _listening(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, int(port)), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SettingsError(f"openai = {address!r} cannot be listened on: {error.strerror or error}") from error
