"""A log for what a peer can cause: the first message of a kind at once, then at most one in every so many seconds, with
how many there were meanwhile. Else whoever sends nonsense without end fills the disk with our own words.

A kind is a message's format, so there are as many as there are calls. What is counted is told with the next of its
kind; the last few of a flood stay untold, and are in the counters of their owner. It knows neither peers nor frames.
"""

import logging
import time
from collections.abc import Callable

INTERVAL_S = 10.0


class LimitedRecords(logging.Filter):
    """The same for a logger that is not ours: what a library says of a peer, of each format the first in so many
    seconds, without its traceback. Bytes that the peer sent are not repeated: they may be a key."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, interval_s: float = INTERVAL_S) -> None:
        super().__init__()
        self._clock = clock
        self._interval_s = interval_s
        self._said_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is written."""
        kind, now_s = str(record.msg)[:40], self._clock()
        if now_s - self._said_s.get(kind, -self._interval_s) < self._interval_s:
            return False
        self._said_s[kind] = now_s
        record.exc_info = None
        if isinstance(record.args, tuple):
            record.args = tuple(f"{len(part)} bytes" if isinstance(part, bytes) else part for part in record.args)
        return True


class LimitedLog:
    """In front of a logger, for one thread."""

    def __init__(
        self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic, interval_s: float = INTERVAL_S
    ) -> None:
        self._logger = logger
        self._clock = clock
        self._interval_s = interval_s
        self._said_s: dict[str, float] = {}
        """By kind: when one was written last."""
        self._unsaid: dict[str, int] = {}

    def warning(self, message: str, *args: object) -> None:
        """Something odd that we get over."""
        self._say(logging.WARNING, message, args)

    def error(self, message: str, *args: object) -> None:
        """Something that harms somebody."""
        self._say(logging.ERROR, message, args)

    def _say(self, level: int, message: str, args: tuple[object, ...]) -> None:
        now_s = self._clock()
        said_s = self._said_s.get(message)
        if said_s is not None and now_s - said_s < self._interval_s:
            self._unsaid[message] = self._unsaid.get(message, 0) + 1
            return
        self._said_s[message] = now_s
        unsaid = self._unsaid.pop(message, 0)
        if unsaid and said_s is not None:
            message, args = f"{message} (and %d like it in the last %.0f s)", (*args, unsaid, now_s - said_s)
        self._logger.log(level, message, *args)
