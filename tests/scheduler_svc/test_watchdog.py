"""The watchdog, and the sign of life that it is fed by."""

import socket

from pagewire.scheduler_svc.watchdog import Watchdog
from pagewire.wire.control import Failed
from pagewire.wire.lifeline import Lifeline


def told(watchdog: Watchdog, marks: list[object]) -> list[int]:
    return [tick for tick, mark in enumerate(marks) if watchdog.is_stuck(mark)]


def test_a_mark_that_stays_is_told_once_for_each_time_out() -> None:
    assert told(Watchdog(1.0, 0.25), [7] * 12) == [4, 8]


def test_a_mark_that_changes_or_is_none_starts_anew() -> None:
    assert told(Watchdog(1.0, 0.25), [1, 1, 1, 1, 2, 2, 2, None, 2, 2, 2, 2, None, None, None, None, None]) == []
    assert told(Watchdog(0.3, 0.25), [1, 2, 2, 2]) == [3]


def test_a_time_out_of_0_never_passes() -> None:
    assert told(Watchdog(0.0, 0.5), [1] * 100) == []


def test_a_sign_of_life_never_waits() -> None:
    ours, theirs = socket.socketpair()
    alive = b'{"type":"alive"}\n'
    with ours:
        lifeline = Lifeline(theirs.detach())
        lifeline.beat()
        assert ours.recv(100) == alive
        for _ in range(10_000):  # more than the socket holds, and nobody reads
            lifeline.beat()
        ours.settimeout(5)
        held = ours.recv(1 << 24)
        assert held == alive * (len(held) // len(alive)), "none of them is cut"
        lifeline.send(Failed("there is room again"))
        assert ours.recv(1000).endswith(b'"there is room again"}\n')
