"""The metrics listener over real sockets: whoever connects gets an answer or an end, and nobody holds it up."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pagewire.scheduler_svc.metrics import listener as listeners
from pagewire.scheduler_svc.metrics.families import pagewire_families
from pagewire.scheduler_svc.metrics.listener import MAX_CONNECTIONS, MAX_HEAD_BYTES, MetricsListener
from pagewire.scheduler_svc.metrics.totals import ServerTotals
from pagewire.scheduler_svc.startup_errors import SettingsError
from pagewire.wire.measures import FrontendCounts, FrontendMeasured

LIMIT_S = 20.0


def run(test: Callable[[MetricsListener], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        with MetricsListener("127.0.0.1:0", ServerTotals()) as listener:
            async with listener.serving(pagewire_families("m", "1", "sim")), asyncio.timeout(LIMIT_S):
                await test(listener)

    asyncio.run(limited())


def port_of(listener: MetricsListener) -> int:
    return int(listener.url.removesuffix("/metrics").rpartition(":")[2])


@asynccontextmanager
async def connected(listener: MetricsListener) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(listener))
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer(listener: MetricsListener, request: bytes) -> bytes:
    async with connected(listener) as (reader, writer):
        writer.write(request)
        return await reader.read()


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /metrics HTTP/1.1", 200),
        ("GET /metrics?name[]=x HTTP/1.0", 200),
        ("HEAD /metrics HTTP/1.1", 200),
        ("GET / HTTP/1.1", 404),
        ("GET /metrics/ HTTP/1.1", 404),
        ("GET", 404),
        ("POST /metrics HTTP/1.1", 405),
        ("\x16\x03\x01 \xff", 405),
    ],
)
def test_get_of_one_path_is_answered(request_line: str, status: int) -> None:
    async def test(listener: MetricsListener) -> None:
        said = await answer(listener, request_line.encode("latin-1") + b"\r\nHost: x\r\n\r\n")
        assert said.startswith(f"HTTP/1.1 {status} ".encode())
        head, _, body = said.partition(b"\r\n\r\n")
        length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        assert length > 0
        assert len(body) == (0 if request_line.startswith("HEAD") else length)

    run(test)


def test_a_head_that_is_too_long_is_refused() -> None:
    async def test(listener: MetricsListener) -> None:
        said = await answer(listener, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 431 ")

    run(test)


def test_open_metrics_where_it_is_asked_for() -> None:
    async def test(listener: MetricsListener) -> None:
        for accept, ends in (("application/openmetrics-text; version=1.0.0", True), ("text/plain", False)):
            said = await answer(listener, f"GET /metrics HTTP/1.1\r\naccept:{accept}\r\n\r\n".encode())
            assert (b"Content-Type: application/openmetrics-text;" in said) is ends
            assert said.endswith(b"# EOF\n") is ends

    run(test)


def test_an_answer_is_kept_until_something_is_reported() -> None:
    async def test(listener: MetricsListener) -> None:
        request = b"GET /metrics HTTP/1.1\r\n\r\n"
        first = await answer(listener, request)
        assert await answer(listener, request) == first
        assert b'pagewire_requests_total{outcome="completed"} 0.0\n' in first
        listener.totals.measured(0, FrontendMeasured(FrontendCounts(requests={"completed": 5}), 0))
        assert b'pagewire_requests_total{outcome="completed"} 5.0\n' in await answer(listener, request)

    run(test)


def test_one_connection_too_many_is_closed_and_a_place_that_comes_free_serves() -> None:
    async def test(listener: MetricsListener) -> None:
        silent = [await asyncio.open_connection("127.0.0.1", port_of(listener)) for _ in range(MAX_CONNECTIONS)]
        assert await answer(listener, b"") == b""
        _, first = silent.pop()
        first.close()
        await first.wait_closed()
        while not (said := await answer(listener, b"GET /metrics HTTP/1.1\r\n\r\n")):
            pass  # until the listener has seen that end
        assert said.startswith(b"HTTP/1.1 200 ")
        for _, writer in silent:
            writer.close()

    run(test)


def test_who_says_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "REQUEST_LIMIT_S", 0.05)

    async def test(listener: MetricsListener) -> None:
        async with connected(listener) as (reader, writer):
            writer.write(b"GET /metrics HTTP/1.1\r\n")
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""

    run(test)


def test_an_address_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SettingsError, match=f"metrics_listen = '{address}' cannot be listened on"):
            MetricsListener(address, ServerTotals())
