"""The service config: calls of a client with several servers go on when one of them drains or dies.

The Python and the Node example, with two real servers behind one static address list.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.examples import COMMANDS, ENVIRONMENT, EXAMPLES, build
from support.service import Service, generation, gone, serve

from pagewire.v1 import inference_pb2, inference_pb2_grpc

TOKENS = 24
"""Of one call."""

pytestmark = pytest.mark.slow


class Calling(Protocol):
    """Whoever makes a call and says what came of it."""

    def call(self) -> dict[str, Any]: ...


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


class Stub:
    """A client in this process, whose channel may have another service config."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = inference_pb2_grpc.InferenceServiceStub(channel)

    def call(self) -> dict[str, Any]:
        request = inference_pb2.GenerateRequest(generation=generation(stopping={"max_tokens": TOKENS}))
        return {"event": "answer", "tokens": len(self._stub.Generate(request, timeout=30).outputs[0].tokens)}


class Counted:
    """Two servers, and a client of them whose calls are counted, none of which may fail."""

    def __init__(self, calling: Calling, servers: tuple[Service, Service]) -> None:
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


def kill(service: Service) -> None:
    """All of its processes, at once."""
    supervisor = psutil.Process(service.process.pid)
    family = [supervisor, *supervisor.children(recursive=True)]
    for member in family:
        member.kill()
    service.process.wait()
    assert not gone(family, within_s=10)


def addresses(servers: tuple[Service, Service]) -> str:
    return "ipv4:" + ",".join(server.address for server in servers)


@pytest.mark.parametrize("language", ["python", "node"])
def test_calls_go_on_when_a_server_is_killed(language: str) -> None:
    with two_servers() as servers, caller(language, addresses(servers)) as calling:
        first, second = servers
        calls = Counted(calling, servers)
        answered = calls.call(20)
        assert min(answered) >= 5, f"no round robin: {answered}"
        kill(first)
        calls.call_blindly(20)
        second.wait_for_load(lambda load: load.output_tokens == (answered[1] + 20) * TOKENS)


def test_pick_first_stays_with_one_server_until_it_is_lost() -> None:
    config = json.loads((EXAMPLES / "service_config.json").read_text())
    config["loadBalancingConfig"] = [{"pick_first": {}}]
    options = [("grpc.service_config", json.dumps(config))]
    with two_servers() as servers, grpc.insecure_channel(addresses(servers), options=options) as channel:
        calls = Counted(Stub(channel), servers)
        answered = calls.call(20)
        assert sorted(answered) == [0, 20]
        chosen, other = servers if answered[0] else servers[::-1]
        kill(chosen)
        calls.call_blindly(20)
        other.wait_for_load(lambda load: load.output_tokens == 20 * TOKENS)


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
