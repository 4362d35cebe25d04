"""How often a measurement is repeated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

_ENOUGH_S = 25.0


def rounds(count: int, clock: Callable[[], float] = time.perf_counter) -> Iterator[int]:
    """0 to `count` - 1; fewer, but at least one, where the first ones have taken so long that a part would get no other
    figure: each round of a slow machine says as much."""
    begin_s = clock()
    for index in range(count):
        if index and clock() - begin_s > _ENOUGH_S:
            return
        yield index
