"""The service config: calls of a client with several servers go on when one of them drains or dies.

The Python and the Node example, with two real servers behind one static address list.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.examples import COMMANDS, ENVIRONMENT, build
from support.service import Service, generation, gone, serve

from pagewire.v1 import inference_pb2

TOKENS = 24
"""Of one call."""

pytestmark = pytest.mark.slow


class Caller:
    """A client that makes a call for each line that it is given."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def call(self) -> dict[str, Any]:
        """Make one; what came of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        event: dict[str, Any] = json.loads(self._process.stdout.readline())
        return event


@contextmanager
def caller(language: str, address: str) -> Iterator[Caller]:
    """The example of this language, with the service config, in front of these servers."""
    process = subprocess.Popen(
        [*COMMANDS[language], address, "balance"],
        cwd=build(language),
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Caller(process)
    finally:
        process.kill()
        process.communicate()


class Counted:
    """Two servers, and a client of them whose calls are counted, none of which may fail."""

    def __init__(self, calling: Caller, servers: tuple[Service, Service]) -> None:
        self._calling = calling
        self._first, self._second = servers
        self._total = 0

    def call(self, times: int) -> tuple[int, int]:
        """Make this many calls, one behind the other; how many of all each server has answered."""
        self.call_blindly(times)
        self._total += times
        expected = self._total * TOKENS
        second = self._second.wait_for_load(lambda load: load.output_tokens + self._first_s() == expected)
        return self._first_s() // TOKENS, second.output_tokens // TOKENS

    def call_blindly(self, times: int) -> None:
        """The same without counting."""
        for _ in range(times):
            assert self._calling.call() == {"event": "answer", "tokens": TOKENS}

    def _first_s(self) -> int:
        return self._first.load().output_tokens


@contextmanager
def two_servers(drain_delay_s: float = 0) -> Iterator[tuple[Service, Service]]:
    with ExitStack() as stack:
        yield stack.enter_context(serve(drain_delay_s=drain_delay_s)), stack.enter_context(serve())


def addresses(servers: tuple[Service, Service]) -> str:
    return "ipv4:" + ",".join(server.address for server in servers)


@pytest.mark.parametrize("language", ["python", "node"])
def test_calls_go_on_when_a_server_is_killed(language: str) -> None:
    with two_servers() as servers, caller(language, addresses(servers)) as calling:
        first, second = servers
        calls = Counted(calling, servers)
        answered = calls.call(20)
        assert min(answered) >= 5, f"no round robin: {answered}"
        family = [psutil.Process(first.process.pid), *psutil.Process(first.process.pid).children(recursive=True)]
        for member in family:
            member.kill()
        first.process.wait()
        assert not gone(family, within_s=10)
        calls.call_blindly(20)
        second.wait_for_load(lambda load: load.output_tokens == (answered[1] + 20) * TOKENS)


def test_calls_go_on_while_a_server_drains_and_ends() -> None:
    """Whoever looks at health is away before the listener closes."""
    with two_servers(drain_delay_s=1) as servers, caller("python", addresses(servers)) as calling:
        calls = Counted(calling, servers)
        assert min(calls.call(20)) >= 5
        servers[0].process.terminate()
        while servers[0].process.poll() is None:
            calls.call_blindly(10)
        calls.call_blindly(10)
        assert servers[0].process.returncode == 0


def test_an_unhealthy_server_is_left_alone_though_it_would_answer() -> None:
    """A draining server says NOT_SERVING and takes calls for a while yet (drain_delay_s): a client that asks for health
    leaves it before it must."""
    with two_servers(drain_delay_s=60) as servers, caller("python", addresses(servers)) as calling:
        first, _ = servers
        calls = Counted(calling, servers)
        answered = calls.call(20)
        assert min(answered) >= 5, f"no round robin: {answered}"
        first.process.terminate()
        wait_until_not_serving(first.channel)
        before = answered[0]
        for _ in range(20):  # what health says reaches the client in its own time
            after, _ = calls.call(10)
            if after == before:
                break
            before = after
        else:
            pytest.fail("the client went on calling a server that is not healthy")
        # It would have answered.
        assert len(first.inference.Generate(inference_pb2.GenerateRequest(generation=generation())).outputs) == 1


def wait_until_not_serving(channel: grpc.Channel) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
    for answer in watch:
        if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
            watch.cancel()
            return
    pytest.fail("the stream of health ended")
