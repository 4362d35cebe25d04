"""Watchdog: notices that something does not go on; it should change a mark from time to time, and the mark stays.

Time is counted in its owner's ticks, not read from a clock. Where a machine slept, or its owner stood still together
with what it watches, no time has passed for either. It does not know what is watched, nor what is done about it.
"""

import math


class Watchdog:
    """Of one thing. Its owner asks at every tick."""

    def __init__(self, timeout_s: float, tick_s: float) -> None:
        self._limit = math.ceil(timeout_s / tick_s)
        self._mark: object = None
        self._ticks = 0

    def is_stuck(self, mark: object) -> bool:
        """Whether `mark` has now been the same for the time-out; true once for each time-out that passes.

        None is no mark: nothing is waited for. A time-out of 0 never passes.
        """
        if mark is None or mark != self._mark:
            self._mark = mark
            self._ticks = 0
            return False
        self._ticks += 1
        if self._ticks != self._limit:
            return False
        self._ticks = 0
        return True
