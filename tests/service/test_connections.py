"""Connections that are bounded in number, idle time and age, and what their clients see of it: nothing."""

import asyncio
import queue
import resource
import selectors
import socket
from typing import Any

import grpc
import psutil
import pytest
from support.service import LIMIT_S, ids_of, serve, stream_request

from pagewire.client import AsyncClient, Client
from pagewire.scheduler_svc.frontend.rpc.listener import connections_of_each, connections_within
from pagewire.v1 import model_pb2
from pagewire.v1.model_pb2_grpc import ModelServiceStub

pytestmark = pytest.mark.slow

STEP_US = 20_000
MAX_TOKENS = 120
"""2.4 s of decoding, several times the age and grace below."""
SEED = 7
AGED = {"max_connection_age_s": 0.4, "max_connection_age_grace_s": 0.3, "sim_step_us": STEP_US}


def until_error(call: Any) -> tuple[list[Any], Any]:
    """What came, and then the error that must."""
    received = []
    try:
        for message in call:
            received.append(message)  # noqa: PERF402 (what came before the error counts)
    except grpc.RpcError as error:
        return received, error
    raise AssertionError("the stream ended by itself")


def test_streams_outlive_their_connections_unseen() -> None:
    with serve(**AGED) as service:
        stopping = {"max_tokens": MAX_TOKENS, "ignore_eos": True}
        request = stream_request([1, 2, 3], stopping=stopping, sampling={"seed": SEED})
        received, error = until_error(service.inference.StreamGenerate(request, timeout=LIMIT_S))
        # A client that does not resume sees that there is an age.
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        parameters = {"max_tokens": MAX_TOKENS, "ignore_eos": True, "seed": SEED}
        with Client(service.address) as client, client.stream([1, 2, 3], **parameters) as stream:
            ids = [token.id for event in stream for token in getattr(event, "tokens", ())]
        assert len(ids) == MAX_TOKENS
        assert ids[: len(ids_of(received))] == ids_of(received) != []

        async def many() -> list[int]:
            async with AsyncClient(service.address) as client:

                async def one(first: int) -> int:
                    async with client.stream([first], **parameters) as stream:
                        return len([token async for event in stream for token in getattr(event, "tokens", ())])

                return await asyncio.gather(*map(one, range(1, 9)))

        assert asyncio.run(many()) == [MAX_TOKENS] * 8


def test_short_calls_never_see_an_age() -> None:
    with serve(max_connection_age_s=0.05, max_connection_age_grace_s=5) as service:
        models = ModelServiceStub(service.channel)
        for _ in range(1000):
            assert models.ListModels(model_pb2.ListModelsRequest(), timeout=LIMIT_S).models
        assert ids_of(service.inference.StreamGenerate(stream_request([1], stopping={"max_tokens": 3})))


def test_more_connections_than_there_may_be_are_closed_and_the_rest_serves() -> None:
    with serve(max_connections=8) as service:
        models = ModelServiceStub(service.channel)
        assert models.ListModels(model_pb2.ListModelsRequest(), timeout=LIMIT_S).models
        host, _, port = service.address.rpartition(":")
        idle = [socket.create_connection((host, int(port)), LIMIT_S) for _ in range(40)]
        with selectors.DefaultSelector() as readable:
            for each in idle:
                readable.register(each, selectors.EVENT_READ)
            while len(readable.get_map()) > 7:  # beside the channel's
                ready = readable.select(LIMIT_S)
                assert ready, "too many are left open"
                for key, _ in ready:
                    if not key.fileobj.recv(4096):  # else the server's settings
                        readable.unregister(key.fileobj)
            assert models.ListModels(model_pb2.ListModelsRequest(), timeout=LIMIT_S).models
            service.load()  # the operator's listener counts its own
            assert len(readable.get_map()) == 7
        for each in idle:
            each.close()
        with grpc.insecure_channel(service.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            answer = ModelServiceStub(channel).ListModels(
                model_pb2.ListModelsRequest(), timeout=LIMIT_S, wait_for_ready=True
            )
        assert answer.models


def test_an_idle_connection_is_closed_and_its_client_makes_another() -> None:
    with serve(max_connection_idle_s=0.3) as service:
        models = ModelServiceStub(service.channel)
        states: queue.Queue[grpc.ChannelConnectivity] = queue.Queue()
        service.channel.subscribe(states.put)
        for _ in range(2):
            assert models.ListModels(model_pb2.ListModelsRequest(), timeout=LIMIT_S).models
            while states.get(timeout=LIMIT_S) is not grpc.ChannelConnectivity.READY:
                pass
            assert states.get(timeout=LIMIT_S) is grpc.ChannelConnectivity.IDLE


def test_a_name_of_two_addresses_shares_its_connections() -> None:
    with serve(max_connections=8, listen="localhost:0") as service:
        port = int(service.address.rpartition(":")[2])
        idle = [socket.create_connection(("127.0.0.1", port), LIMIT_S) for _ in range(20)]
        with selectors.DefaultSelector() as readable:
            for each in idle:
                readable.register(each, selectors.EVENT_READ)
            while len(readable.get_map()) > 4:
                ready = readable.select(LIMIT_S)
                assert ready, "too many are left open"
                for key, _ in ready:
                    if not key.fileobj.recv(4096):
                        readable.unregister(key.fileobj)
        for each in idle:
            each.close()


@pytest.mark.parametrize(
    ("address", "num_addresses"),
    [
        ("unix:/run/pw.sock", 1),
        ("127.0.0.1:0", 1),
        ("[::]:50051", 1),
        ("LocalHost:0", 2),
        ("three.example:0", 3),
        ("lost.example:0", 1),
    ],
)
def test_each_address_of_a_name_takes_its_share(
    address: str, num_addresses: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def found(host: str, *arguments: Any, **options: Any) -> Any:
        if host == "lost.example":
            raise socket.gaierror
        hosts = ("::1", "127.0.0.1", "127.0.0.2", "::1") if host == "three.example" else (host,)
        return [entry for each in hosts for entry in real(each, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    assert connections_of_each(100, address) == 100 // num_addresses
    assert connections_of_each(1, address) == 1


@pytest.mark.parametrize(
    ("max_connections", "max_descriptors", "taken"), [(100, 65_536, 100), (4096, 1024, 832), (4096, 64, 16)]
)
def test_connections_leave_descriptors_for_the_process(
    max_connections: int, max_descriptors: int, taken: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert connections_within(max_connections, max_descriptors) == taken
    assert (f"may have {max_descriptors} descriptors" in caplog.text) == (taken < max_connections)


def test_a_frontend_may_have_as_many_descriptors_as_the_machine_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        with serve() as service:
            frontend = service.children()["frontend"]
            assert psutil.Process(frontend.pid).rlimit(psutil.RLIMIT_NOFILE)[0] >= min(hard, 1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
