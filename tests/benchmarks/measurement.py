"""Runs the sides of a comparison in turn, and watches that nothing else ran meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from benchmarks.comparison import Case, Run, in_turn
from benchmarks.processes import machine_busy_s, own_cpu_s
from benchmarks.sides import Side

_IDLE_TIMEOUT_S = 30.0


class Disturbance:
    """Processor time that was taken, during runs, by anything but the side that ran and its load client."""

    def __init__(self) -> None:
        self.other_cores = 0.0
        """The most of any run, as a number of cores: other programs, and what the host took."""
        self.idle_cores = 0.0
        """The same of the sides whose turn it was not."""

    @contextmanager
    def watch(self, sides: Iterable[Side], active: Side) -> Iterator[None]:
        """Around a run of `active`."""
        idle = [side.family() for side in sides if side is not active]
        ours = active.family()
        begin_s = time.perf_counter()
        machine_s, active_s = machine_busy_s(), ours.cpu_s() + own_cpu_s()
        idle_s = sum(family.cpu_s() for family in idle)
        yield
        idle_s = sum(family.cpu_s() for family in idle) - idle_s
        active_s = ours.cpu_s() + own_cpu_s() - active_s
        machine_s = machine_busy_s() - machine_s
        wall_s = time.perf_counter() - begin_s
        self.idle_cores = max(self.idle_cores, idle_s / wall_s)
        self.other_cores = max(self.other_cores, (machine_s - active_s - idle_s) / wall_s)


def start_all(
    sides: Iterable[Side], first: Case, temperature: float, times: Mapping[str, int]
) -> dict[str, list[float]]:
    """Start the sides one after the other, each as often as `times` has it, and leave all up and idle. Seconds from
    the start of a process to the end of its first case."""
    taken: dict[str, list[float]] = {}
    for side in sides:
        taken[side.name] = []
        for _ in range(times.get(side.name, 1)):
            side.close()
            taken[side.name].append(side.start(first, temperature))
        side.family().wait_until_idle(_IDLE_TIMEOUT_S)
    return taken


def run_rounds(
    sides: Sequence[Side],
    taking_part: Sequence[Side],
    case: Case,
    temperature: float,
    rounds: int,
    disturbance: Disturbance,
) -> dict[str, list[Run]]:
    """Side → its runs, after a short one of each that does not count. Raises ValueError where a side did not do what
    the case asks."""
    for side in taking_part:
        side.run(case.shortened(), temperature)
        side.family().wait_until_idle(_IDLE_TIMEOUT_S)
    found: dict[str, list[Run]] = {side.name: [] for side in taking_part}
    for index in range(rounds):
        for side in in_turn(taking_part, index):
            with disturbance.watch(sides, side):
                run = side.run(case, temperature)
            run.check(case, side.name)
            found[side.name].append(run)
            side.family().wait_until_idle(_IDLE_TIMEOUT_S)
    return found
