"""A log that a peer cannot flood."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagewire.scheduler_svc.limited_log import LimitedLog, LimitedRecords


class Written(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


@pytest.fixture
def written() -> Written:
    return Written()


def logger_to(written: Written) -> logging.Logger:
    logger = logging.Logger("limited")
    logger.addHandler(written)
    return logger


def test_the_first_at_once_then_a_count(written: Written) -> None:
    now = [0.0]
    log = LimitedLog(logger_to(written), lambda: now[0], interval_s=10.0)
    for number in range(1000):
        log.warning("a frame was dropped: %s", f"number {number}")
    assert written.lines == ["WARNING a frame was dropped: number 0"]
    log.error("another kind")
    now[0] = 10.0
    log.warning("a frame was dropped: %s", "the next")
    log.warning("a frame was dropped: %s", "uncounted yet")
    assert written.lines[1:] == [
        "ERROR another kind",
        "WARNING a frame was dropped: the next (and 999 like it in the last 10 s)",
    ]
    now[0] = 100.0
    log.error("another kind")
    assert written.lines[3:] == ["ERROR another kind"], "nothing was left out"


@given(st.lists(st.floats(0, 5), max_size=200))
def test_every_message_is_written_or_counted_and_few_are_written(pauses_s: list[float]) -> None:
    written, now = Written(), [0.0]
    log = LimitedLog(logger_to(written), lambda: now[0], interval_s=10.0)
    for pause_s in pauses_s:
        now[0] += pause_s
        log.warning("odd")
    assert len(written.lines) <= 1 + now[0] / 10
    counted = sum(int(line.split()[3]) for line in written.lines if "(and" in line)
    untold = log._unsaid.get("odd", 0)
    assert len(written.lines) + counted + untold == len(pauses_s)


def test_a_library_says_each_kind_once_in_so_long_and_repeats_no_bytes(caplog: pytest.LogCaptureFixture) -> None:
    now_s = [0.0]
    logger = logging.getLogger("a library")
    limit = LimitedRecords(lambda: now_s[0], 10.0)
    logger.addFilter(limit)
    try:
        for at_s in (0.0, 3.0, 9.9, 10.0):
            now_s[0] = at_s
            logger.error("Invalid encoding on %s", b"Bearer s\xffcret")
        logger.error("Something else, %d", 5)
    finally:
        logger.removeFilter(limit)
    assert caplog.messages == ["Invalid encoding on 13 bytes"] * 2 + ["Something else, 5"]
