"""The metrics listener: answers GET /metrics over HTTP, on an address of its own.

It owns the socket, which is there from before the model is fetched, and the connections to it: few, each for one
request, which must come within a limit of time and length; so nobody holds up the process that watches all others. An
answer is encoded on a thread and kept until something has been reported since, so scraping often costs little. It knows
the counts as a snapshot alone.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from types import TracebackType

from pagewire.scheduler_svc.metrics.exposition import exposed, wants_open_metrics
from pagewire.scheduler_svc.metrics.families import Family
from pagewire.scheduler_svc.metrics.totals import ServerTotals
from pagewire.scheduler_svc.startup_errors import SettingsError

MAX_CONNECTIONS = 32
"""More are closed as they come."""
MAX_HEAD_BYTES = 8 * 1024
REQUEST_LIMIT_S = 10.0
"""For a request to come, and for its answer to be taken."""
_BACKLOG = 64


class MetricsListener:
    """Holds the address from its beginning. Use as a context manager, and `serving` inside it."""

    def __init__(self, address: str, totals: ServerTotals) -> None:
        """`address` is the value of the setting `metrics_listen`. Raises SettingsError where it cannot be listened
        on."""
        self._listener = _listening(address)
        self.totals = totals
        """What the answers are made of."""
        self._families: Sequence[Family] = ()
        self._num_connections = 0
        self._kept: dict[bool, tuple[int, tuple[bytes, str]]] = {}
        """The last answer in each format, with the version of what it says."""

    @property
    def url(self) -> str:
        """Where to scrape."""
        host, port = self._listener.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"

    @contextlib.asynccontextmanager
    async def serving(self, families: Sequence[Family]) -> AsyncIterator[None]:
        """Answer with these while the block runs, on its event loop."""
        self._families = families
        server = await asyncio.start_server(self._connected, sock=self._listener, limit=MAX_HEAD_BYTES)
        try:
            yield
        finally:
            server.close()  # who is connected ends with the loop

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._num_connections >= MAX_CONNECTIONS:
            writer.close()
            return
        self._num_connections += 1
        try:
            async with asyncio.timeout(REQUEST_LIMIT_S):
                writer.write(await self._answer(reader))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            writer.transport.abort()
        finally:
            self._num_connections -= 1

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response("431 Request Header Fields Too Large", f"over {MAX_HEAD_BYTES} bytes\n".encode())
        request, *fields = head.decode("latin-1").split("\r\n")
        method, _, rest = request.partition(" ")
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", b"GET and HEAD alone\n", extra="Allow: GET, HEAD\r\n")
        if rest.partition(" ")[0].partition("?")[0] != "/metrics":
            return _response("404 Not Found", b"metrics are at /metrics\n", is_head=method == "HEAD")
        accept = ",".join(
            value for name, _, value in (field.partition(":") for field in fields) if name.lower() == "accept"
        )
        body, content_type = await self._exposed(wants_open_metrics(accept))
        return _response("200 OK", body, content_type, is_head=method == "HEAD")

    async def _exposed(self, open_metrics: bool) -> tuple[bytes, str]:
        version = self.totals.version
        if (kept := self._kept.get(open_metrics)) is not None and kept[0] == version:
            return kept[1]
        snapshot = self.totals.snapshot()
        answer = await asyncio.to_thread(exposed, snapshot, self._families, open_metrics=open_metrics)
        self._kept[open_metrics] = version, answer
        return answer

    def __enter__(self) -> "MetricsListener":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()


def _response(
    status: str,
    body: bytes,
    content_type: str = "text/plain; charset=utf-8",
    *,
    extra: str = "",
    is_head: bool = False,
) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{extra}"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if is_head else body)


def _listening(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, int(port)), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SettingsError(f"metrics_listen = {address!r} cannot be listened on: {error.strerror or error}") from error
