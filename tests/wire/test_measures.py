"""Reports that may be left out, and histograms."""

import socket

import msgspec
import pytest

from pagewire.wire.codec import JsonCodec, WireError
from pagewire.wire.control import Alive, Drained, FromChild
from pagewire.wire.lifeline import Lifeline
from pagewire.wire.measures import (
    BYTES,
    GAP_SECONDS,
    MAX_TENANTS,
    SECONDS,
    STEP_SECONDS,
    TOKENS,
    EngineCounts,
    FrontendCounts,
    FrontendMeasured,
    Histogram,
    TenantUse,
)

FROM_CHILD: JsonCodec[FromChild] = JsonCodec(FromChild)


def large_report(number: int) -> FrontendMeasured:
    """Of as many tenants as there can be, with names as long as they may be."""
    tenants = {f"{index:0255}": TenantUse(number) for index in range(MAX_TENANTS)}
    return FrontendMeasured(FrontendCounts(tenants=tenants), number)


def test_a_supervisor_that_stands_still_gets_whole_messages_in_order_and_holds_nobody_up() -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
    lifeline = Lifeline(theirs.detach())
    assert lifeline.offer(large_report(0))  # of which a part is sent at most
    for number in range(1, 4):
        assert not lifeline.offer(large_report(number))
    received = bytearray()
    ours.settimeout(10.0)
    accepted = [0]
    number = 4
    while len(accepted) < 4:
        received += ours.recv(4096)
        if lifeline.offer(large_report(number)):
            accepted.append(number)
        number += 1
    while not received.endswith(FROM_CHILD.encode_line(large_report(accepted[-1]))):
        received += ours.recv(65536)
        lifeline.beat()
        received = bytearray(received.replace(FROM_CHILD.encode_line(Alive()), b""))
    messages = [FROM_CHILD.decode(line) for line in received.splitlines()]
    assert [message.open_requests for message in messages if isinstance(message, FrontendMeasured)] == accepted
    lifeline.send(Drained(7))
    rest = b""
    while not rest.endswith(b"}\n") or b"drained" not in rest:
        rest += ours.recv(65536)
    assert FROM_CHILD.decode(rest.splitlines()[-1]) == Drained(7)
    ours.close()


def test_offering_to_a_supervisor_that_is_gone_raises_nothing() -> None:
    ours, theirs = socket.socketpair()
    lifeline = Lifeline(theirs.detach())
    ours.close()
    for number in range(3):
        lifeline.offer(large_report(number))


@pytest.mark.parametrize("bounds", [SECONDS, GAP_SECONDS, STEP_SECONDS, TOKENS, BYTES])
def test_a_value_lies_below_the_bound_that_it_equals(bounds: tuple[float, ...]) -> None:
    histogram = Histogram.empty(bounds)
    for bound in bounds:
        histogram.observe(bound)
    histogram.observe(bounds[-1] * 2, times=3)
    assert histogram.counts == [1] * len(bounds) + [3]
    assert histogram.total == pytest.approx(sum(bounds) + 6 * bounds[-1])


def test_a_report_fits_the_line_that_a_supervisor_reads() -> None:
    assert len(FROM_CHILD.encode_line(large_report(2**31 - 1))) < 256 * 1024


def test_more_tenants_than_there_may_be_are_no_report() -> None:
    counts = EngineCounts(block_seconds={str(number): 1.0 for number in range(MAX_TENANTS + 2)})
    with pytest.raises(WireError, match="length <= 201"):
        JsonCodec[EngineCounts](EngineCounts).decode(msgspec.json.encode(counts))
