"""The engine's links against real sockets: who counts as a peer, and who does not."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest
import zmq

from pagewire.scheduler_svc.engine.links import Dropped, FrontendLink, WorkerLink
from pagewire.scheduler_svc.engine.router_sockets import RouterSockets
from pagewire.wire.codec import Codec
from pagewire.wire.columns import pack
from pagewire.wire.launch import Endpoint
from pagewire.wire.plan import PROTOCOL_VERSION, Begin, StepResult, ToWorker, WorkerHello
from pagewire.wire.requests import Abort, Answer, Register, ToFrontend

ABORT = Abort(pack([1]))
HELLO = WorkerHello(
    protocol_version=PROTOCOL_VERSION,
    rank=0,
    incarnation=0,
    num_blocks=1,
    block_size=1,
    max_num_seqs=1,
    max_model_len=1,
    vocab_size=1,
    weights_bytes=1,
    kv_cache_bytes=1,
    attention_backend="",
    linear_backend="",
    versions={},
)

Dial = Callable[[bytes], "zmq.Socket[bytes]"]


@pytest.fixture
def router() -> Iterator["zmq.Socket[bytes]"]:
    with RouterSockets() as sockets:
        yield sockets.bind(Endpoint(address=f"ipc://@pagewire-test-peers-{os.getpid()}"))


@pytest.fixture
def dial() -> Iterator[Dial]:
    opened: list[zmq.Socket[bytes]] = []

    def connect(identity: bytes) -> "zmq.Socket[bytes]":
        dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        dealer.setsockopt(zmq.IDENTITY, identity)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.RCVTIMEO, 5000)
        dealer.connect(f"ipc://@pagewire-test-peers-{os.getpid()}")
        opened.append(dealer)
        return dealer

    yield connect
    for dealer in opened:
        dealer.close(0)


def say(link: FrontendLink | WorkerLink, dealer: "zmq.Socket[bytes]", *messages: object) -> list[tuple[int, Any]]:
    """What the link makes of messages, sent one by one."""
    heard: list[tuple[int, Any]] = []
    for message in messages:
        dealer.send(message if isinstance(message, bytes) else Codec(object).encode(message))
        assert link.socket.poll(5000)
        heard += link.receive()
    return heard


def test_a_flood_of_nonsense_is_a_line_and_a_count(
    router: "zmq.Socket[bytes]", dial: Dial, caplog: pytest.LogCaptureFixture
) -> None:
    link = WorkerLink(router, lambda hello: "it is not wanted")
    peer = dial(b"0:0")
    for _ in range(500):
        assert say(link, peer, b"\xc1", HELLO) == []
    assert link.dropped == {Dropped.MALFORMED: 500, Dropped.UNFIT: 500}
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[1] == "a worker is refused: it is not wanted"


def test_who_is_not_registered_is_nobody(router: "zmq.Socket[bytes]", dial: Dial) -> None:
    link = FrontendLink(router)
    frontend = dial(b"a")
    assert say(link, frontend, ABORT, b"\xc1", Register(3, 0), ABORT) == [(3, Register(3, 0)), (3, ABORT)]
    assert link.dropped == {Dropped.UNKNOWN: 1, Dropped.MALFORMED: 1}
    link.send(3, Answer(1, 2))
    link.send(4, Answer(1, 2))  # nobody, and no error
    assert Codec[ToFrontend](ToFrontend).decode(frontend.recv()) == Answer(1, 2)


def test_an_earlier_incarnation_does_not_come_back(router: "zmq.Socket[bytes]", dial: Dial) -> None:
    link = FrontendLink(router)
    old, new = dial(b"old"), dial(b"new")
    assert say(link, old, Register(0, 4)) == [(0, Register(0, 4))]
    assert say(link, new, Register(0, 5)) == [(0, Register(0, 5))]
    assert say(link, old, ABORT, Register(0, 4)) == []
    assert link.dropped == {Dropped.UNKNOWN: 1, Dropped.STALE: 1}
    assert say(link, new, ABORT) == [(0, ABORT)]


def test_an_unreachable_frontend_is_gone_once(router: "zmq.Socket[bytes]", dial: Dial) -> None:
    link = FrontendLink(router)
    frontend = dial(b"a")
    say(link, frontend, Register(7, 0))
    frontend.close(0)
    while not (gone := link.take_gone()):
        link.broadcast(Answer(1, 1))  # until the socket has noticed
    assert gone == {7}
    link.broadcast(Answer(1, 1))
    assert link.take_gone() == set()


def test_a_worker_of_another_protocol_is_nobody(router: "zmq.Socket[bytes]", dial: Dial) -> None:
    link = WorkerLink(router, lambda hello: None)
    worker = dial(b"w")
    result = StepResult(0, 0, b"", 1, 1)
    stranger = msgspec.structs.replace(HELLO, protocol_version=PROTOCOL_VERSION + 1)
    assert say(link, worker, stranger, result) == []
    assert say(link, worker, HELLO, result) == [(0, HELLO), (0, result)]
    link.send(Begin(9))
    assert Codec[ToWorker](ToWorker).decode(worker.recv()) == Begin(9)
    link.forget(0)
    assert say(link, worker, result) == []
    assert link.dropped == {Dropped.UNFIT: 1, Dropped.UNKNOWN: 2}


def test_an_introduction_that_is_sent_again_by_another_takes_no_place(router: "zmq.Socket[bytes]", dial: Dial) -> None:
    link = FrontendLink(router)
    frontend, other = dial(b"a"), dial(b"b")
    assert say(link, frontend, Register(0, 4)) == [(0, Register(0, 4))]
    assert say(link, other, Register(0, 4), ABORT) == []
    assert link.dropped == {Dropped.REPLAYED: 1, Dropped.UNKNOWN: 1}
    # The same process under another name says that it has connected anew; and its own words it may say twice.
    again = dial(b"c")
    assert say(link, again, Register(0, 4, 1), Register(0, 4, 1), ABORT)[1:] == [(0, Register(0, 4, 1)), (0, ABORT)]
    assert say(link, frontend, Register(0, 4)) == []
    assert link.dropped == {Dropped.REPLAYED: 1, Dropped.UNKNOWN: 1, Dropped.STALE: 1}


def test_a_replayed_hello_takes_no_workers_place(router: "zmq.Socket[bytes]", dial: Dial) -> None:
    link = WorkerLink(router, lambda hello: None)
    worker, other = dial(b"0:0"), dial(b"x")
    result = StepResult(0, 0, b"", 1, 1)
    assert say(link, worker, HELLO) == [(0, HELLO)]
    assert say(link, other, HELLO, result) == []
    assert say(link, worker, result) == [(0, result)]
    assert link.dropped == {Dropped.REPLAYED: 1, Dropped.UNKNOWN: 1}


def test_whoever_does_not_know_the_password_is_not_heard(dial: Dial) -> None:
    endpoint = Endpoint(address=f"ipc://@pagewire-test-peers-{os.getpid()}", password="right")
    with RouterSockets() as sockets:
        link = FrontendLink(sockets.bind(endpoint, "frontends"))
        nobody, guesser = dial(b"a"), zmq.Context.instance().socket(zmq.DEALER)
        peer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        for each, password in ((guesser, b"wrong"), (peer, b"right")):
            each.setsockopt(zmq.IDENTITY, b"a")
            each.setsockopt(zmq.LINGER, 0)
            each.setsockopt(zmq.PLAIN_USERNAME, b"frontend")
            each.setsockopt(zmq.PLAIN_PASSWORD, password)
        refused = guesser.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        with guesser, peer, refused:
            guesser.connect(endpoint.address)
            assert refused.poll(5000)
            guesser.disable_monitor()
            # Where the connection was given up already there is nowhere to send to.
            for unheard, incarnation in ((guesser, 9), (nobody, 8)):
                with suppress(zmq.Again):
                    unheard.send(Codec(object).encode(Register(0, incarnation)), zmq.NOBLOCK)
            peer.connect(endpoint.address)
            assert say(link, peer, Register(0, 0)) == [(0, Register(0, 0))]
        assert sockets.refused("frontends") == 1
        assert not link.dropped
