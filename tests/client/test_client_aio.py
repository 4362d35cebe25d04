"""The asyncio client against a real server."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable

import grpc
import pytest
from grpc_health.v1 import health_pb2
from support.scripted_service import PROMPT_IDS, ScriptedService, status, unavailable

from pagewire.client import (
    AsyncClient,
    BatchError,
    Cancelled,
    Chat,
    ContentPart,
    DeadlineExceeded,
    Delta,
    HealthStatus,
    InvalidRequest,
    Message,
    NotFound,
    Overloaded,
    PagewireError,
    ProtocolError,
    RetryPolicy,
    Unavailable,
)

ANSWER = "Hello, wörld €"

Run = Callable[[Callable[[AsyncClient], Awaitable[None]]], None]


@pytest.fixture
def run(service: ScriptedService, policy: RetryPolicy) -> Run:
    """Runs a coroutine function with a client in an event loop of its own."""

    def run(work: Callable[[AsyncClient], Awaitable[None]]) -> None:
        async def main() -> None:
            async with AsyncClient(service.address, retry=policy) as client:
                await work(client)

        asyncio.run(asyncio.wait_for(main(), 30))

    return run


async def happened(event: threading.Event) -> bool:
    return await asyncio.to_thread(event.wait, 10)


def test_every_method(run: Run, service: ScriptedService) -> None:
    async def work(client: AsyncClient) -> None:
        assert (await client.generate("hi")).text == ANSWER
        assert (await client.chat([Message("user", "hi")], max_tokens=5)).text == "Hello"
        mapping = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
        tool = {"type": "function", "function": {"name": "t"}}
        assert (await client.chat([mapping], tools=[tool], max_tokens=5)).text == "Hello"
        assert [piece async for piece in client.stream("hi").text] == list(ANSWER)
        stream = client.stream(Chat([Message("user", "hi")]))
        assert [part async for part in stream.parts] == [ContentPart(letter) for letter in ANSWER]
        assert (await stream.result()).message == Message("assistant", ANSWER)
        assert (await client.chat([Message("user", "hi")])).message == Message("assistant", ANSWER)
        with pytest.raises(ValueError, match="the prompt was no chat"):
            _ = (await client.generate("hi")).message
        events = [event async for event in client.stream("hi")]
        assert "".join(event.text for event in events if isinstance(event, Delta)) == ANSWER
        assert (await client.stream("hi").result()).text == ANSWER
        assert (await client.tokenize("hi")).ids == tuple(PROMPT_IDS)
        assert [each.text for each in await client.tokenize(["a", "b"])] == ["a", "b"]
        assert await client.detokenize([104, 105]) == "hi"
        assert (await client.models())[0] == await client.model()
        assert await client.health() is HealthStatus.SERVING

    run(work)


def test_several_prompts(run: Run, service: ScriptedService) -> None:
    async def work(client: AsyncClient) -> None:
        results = await client.generate([f"prompt {i}" for i in range(20)], max_tokens=3, max_concurrency=4)
        assert [result.text for result in results] == ["Hel"] * 20
        with pytest.raises(BatchError, match="1 of 3"):
            await client.generate(["a", "\ud800", "c"])
        outcomes = await client.generate(["a", "\ud800", "c"], return_exceptions=True)
        assert [isinstance(outcome, PagewireError) for outcome in outcomes] == [False, True, False]
        with pytest.raises(InvalidRequest):
            await client.generate(["a", "b"], request_id="x")
        with pytest.raises(ValueError, match="max_concurrency is 0"):
            await client.generate(["a", "b"], max_concurrency=0)

    run(work)


def test_errors(run: Run, service: ScriptedService) -> None:
    async def work(client: AsyncClient) -> None:
        with pytest.raises(NotFound):
            await client.model("other")
        service.failures = [status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")]
        with pytest.raises(Overloaded, match="full"):
            await client.stream("hi").result()
        service.failures = [unavailable("WORKER_LOST")] * 10
        with pytest.raises(Unavailable) as caught:
            await client.generate("hi")
        assert caught.value.reason == "WORKER_LOST"
        service.failures = []
        service.streams = [lambda _request, _context: iter([])]
        with pytest.raises(ProtocolError):
            await client.stream("hi").result()

    run(work)


def test_retries(run: Run, service: ScriptedService) -> None:
    async def work(client: AsyncClient) -> None:
        service.failures = [unavailable(), unavailable()]
        assert (await client.generate("hi")).text == ANSWER
        service.failures = [unavailable(), unavailable()]
        assert (await client.stream("hi").result()).text == ANSWER

    run(work)


def test_watching_health(run: Run, service: ScriptedService) -> None:
    async def work(client: AsyncClient) -> None:
        watch = client.watch_health()
        assert await anext(watch) is HealthStatus.SERVING
        service.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert await anext(watch) is HealthStatus.NOT_SERVING
        await watch.aclose()  # type: ignore[attr-defined]

    run(work)


def test_leaving_a_stream_reaches_the_server(run: Run, service: ScriptedService) -> None:
    async def work(client: AsyncClient) -> None:
        service.hang_after_started()
        async with client.stream("hi") as stream:
            await anext(stream)
        assert await happened(service.ended)
        assert [event async for event in stream] == []

    run(work)


def test_dropping_a_stream_reaches_the_server(run: Run, service: ScriptedService) -> None:
    async def work(client: AsyncClient) -> None:
        service.hang_after_started()
        stream = client.stream("hi")
        await anext(stream)
        del stream
        gc.collect()
        assert await happened(service.ended)

    run(work)


def test_cancelling_the_reading_task_reaches_the_server(run: Run, service: ScriptedService) -> None:
    async def work(client: AsyncClient) -> None:
        service.hang_after_started()
        reading = asyncio.ensure_future(client.stream("hi").result())
        assert await happened(service.hanging)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await happened(service.ended)

    run(work)


def test_closing_from_another_task_ends_the_wait(run: Run, service: ScriptedService) -> None:
    async def work(client: AsyncClient) -> None:
        service.hang_after_started()
        stream = client.stream("hi")
        await anext(stream)
        reading = asyncio.ensure_future(anext(stream))
        assert await happened(service.hanging)
        stream.close()
        with pytest.raises((Cancelled, StopAsyncIteration)):
            await reading
        assert await happened(service.ended)

    run(work)


def test_a_deadline(run: Run, service: ScriptedService) -> None:
    async def work(client: AsyncClient) -> None:
        service.hang_after_started()
        with pytest.raises(DeadlineExceeded):
            await client.stream("hi", timeout_s=0.2).result()
        assert await happened(service.ended)

    run(work)


def test_a_misspelled_parameter(run: Run, service: ScriptedService) -> None:
    async def work(client: AsyncClient) -> None:
        for prompt in ("a", ["a", "b"]):
            with pytest.raises(TypeError, match="temprature"):
                await client.generate(prompt, temprature=1)  # type: ignore[call-overload]
        assert service.seen == []

    run(work)
