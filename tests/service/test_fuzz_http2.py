"""The gRPC listeners of a running service, the operators' too, under HTTP/2 that no client speaks.

Ten seconds, or so many as PAGEWIRE_TEST_FUZZ_S says (`bash tests/run.sh faults` takes 600); PAGEWIRE_TEST_SEED draws
other attacks. What was sent is printed.
"""

import random
import socket
from collections.abc import Iterator

import pytest
from support.fuzz_world import MAX_MODEL_LEN, SECONDS, SEED, FuzzWorld, fuzz_world, used
from support.http2_attacks import (
    ACK,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
    Http2Attacks,
    frame,
    request_headers,
)
from support.service import LIMIT_S, ids_of, stream_request

LONG = stream_request([1, 2, 3], stopping={"max_tokens": MAX_MODEL_LEN - 3, "ignore_eos": True}, sampling={"seed": 1})
WAITING_CALLS_BYTES = 1 << 30
"""What calls may take that wait for a busy frontend, given up or not: 4,096 of each of 7 methods that are called, of 14
KB, and as many that its event loop has taken. Eight GB of them came in 25 s where they were not bounded."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 180)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuzzWorld]:
    with fuzz_world(tmp_path_factory.mktemp("model")) as running:
        yield running


@pytest.fixture
def attacks(world: FuzzWorld) -> Iterator[Http2Attacks]:
    made = Http2Attacks([world.service.address, world.service.admin_address], LONG, world.pickle)
    yield made
    made.close()


def test_no_connection_disturbs_anybody(world: FuzzWorld, attacks: Http2Attacks) -> None:
    world.run(attacks.all, attacks.close, growth_bytes=WAITING_CALLS_BYTES, a_second=60, most_turned_away=0.05)


def test_more_resets_than_can_be_answered_end_no_stream_that_runs(world: FuzzWorld, attacks: Http2Attacks) -> None:
    """New calls may be turned away meanwhile, where thousands wait; what runs goes on, and then all is as before."""
    expected = ids_of(world.service.inference.StreamGenerate(LONG, timeout=LIMIT_S))
    streams = [world.service.inference.StreamGenerate(LONG, timeout=LIMIT_S) for _ in range(8)]
    begun = [ids_of([next(stream), next(stream)]) for stream in streams]
    draw = random.Random(SEED)
    for _ in range(60):
        attacks.rapid_reset(draw, num_calls=1000)
    for first, stream in zip(begun, streams, strict=True):
        assert first + ids_of(stream) == expected
    assert world.bystanders.answer(0) == world.bystanders.expected[0]
    frontend = used(world.service)[world.service.children()["frontend"].pid]
    assert frontend.rss_bytes < WAITING_CALLS_BYTES


def test_a_method_whose_name_is_no_text_is_unknown_like_any_other(world: FuzzWorld) -> None:
    """It ended grpc's own loop of calls, and with it every stream of the listener."""
    host, _, port = world.service.address.rpartition(":")
    with socket.create_connection((host, int(port)), LIMIT_S) as connection:
        connection.settimeout(LIMIT_S)
        connection.sendall(PREFACE + frame(SETTINGS) + frame(SETTINGS, ACK))
        for stream, path in ((1, b"/\xff\xfe"), (3, b"/nowhere")):
            connection.sendall(frame(HEADERS, END_HEADERS | END_STREAM, stream, request_headers(path)))
        received = b""
        while received.count(b"Method not found!") < 2:
            piece = connection.recv(65_536)
            assert piece, f"closed behind {received!r}"
            received += piece
    assert world.bystanders.answer(1) == world.bystanders.expected[1]
