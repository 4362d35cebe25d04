"""The faults: what each does to a running service, and how long the pause of its streams may be.

Knows processes and signals, and of the load how far it is.
"""

import contextlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import psutil
from faults.load import Course
from support.service import Service, stream_request, workers_of

LONGEST_PAUSE_S = 5.0
_BACK_S = 60.0
_LOOK_S = 0.02


def _kill(service: Service, role: str) -> psutil.Process:
    """One that there is, or its next incarnation: a fault that meets nobody shows nothing."""
    child = _next_after(service, role)
    child.kill()
    return child


def _next_after(service: Service, role: str, pid: int = 0) -> psutil.Process:
    deadline_s = time.monotonic() + _BACK_S
    while True:
        child = service.children().get(role)
        if child is not None and child.pid != pid:
            return child
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"no {role} came back within {_BACK_S:g} s")
        time.sleep(_LOOK_S)


@dataclass(frozen=True)
class Fault:
    """`strike` is called once, somewhere between the first token and the last; it may say what it saw."""

    name: str
    strike: Callable[[Service, Course, random.Random], str]
    longest_pause_s: float = LONGEST_PAUSE_S
    latest: float = 0.9
    """It strikes before this share of all tokens has come."""


def killing(*roles: str) -> Callable[[Service, Course, random.Random], str]:
    def strike(service: Service, course: Course, draw: random.Random) -> str:
        for role in roles:
            _kill(service, role)
        return ""

    return strike


def a_rank(service: Service, course: Course, draw: random.Random) -> str:
    """Whichever is drawn."""
    ranks = workers_of(service.process.pid)
    rank = draw.randrange(len(ranks))
    ranks[rank].kill()
    return f"rank {rank} of {len(ranks)}"


def five_in_a_row(service: Service, course: Course, draw: random.Random) -> str:
    """Each when the one before has given tokens, or at once, as it is drawn."""
    kills = 0
    while kills < 5:
        child = _kill(service, "worker")
        kills += 1
        _next_after(service, "worker", child.pid)
        if kills < 5 and draw.random() < 0.7 and not course.wait_for(course.tokens + 1):
            raise AssertionError(f"the streams ended after {kills} of 5 kills")
    return f"{kills} kills"


def stopping(slowest_step_s: float) -> Callable[[Service, Course, random.Random], str]:
    """A worker that stands still without ending."""
    bound_s = 3 * slowest_step_s + 2

    def strike(service: Service, course: Course, draw: random.Random) -> str:
        worker = _next_after(service, "worker")
        worker.suspend()
        began_s = time.monotonic()
        psutil.wait_procs([worker], timeout=_BACK_S)
        # It is asked to end, which it does not hear, and killed a second later.
        noticed_s = time.monotonic() - began_s - 1
        if noticed_s > bound_s:
            raise AssertionError(f"noticed after {noticed_s:.1f} s; at most {bound_s:.1f}")
        return f"noticed after {noticed_s:.1f} of {bound_s:.1f} s"

    return strike


def _kill_a_helper(service: Service, course: Course, draw: random.Random) -> str:
    """A frontend's: the process that renders chat templates, or the one that compiles grammars."""
    helpers = [
        child
        for child in psutil.Process(service.process.pid).children(recursive=True)
        if any(word.startswith("pagewire.scheduler_svc.frontend.text.") for word in child.cmdline())
    ]
    if not helpers:
        raise AssertionError("no helper runs")
    draw.choice(helpers).kill()
    return ""


def _cancel_twenty(service: Service, course: Course, draw: random.Random) -> str:
    """Streams of somebody else's, begun and given up."""
    request = stream_request([draw.randrange(5, 40_000) for _ in range(16)], stopping={"max_tokens": 60})
    calls = [service.inference.StreamGenerate(request) for _ in range(20)]
    for call in calls:
        if draw.random() < 0.5:
            with contextlib.suppress(grpc.RpcError):
                next(call, None)
        call.cancel()
    return ""


def _suspend(service: Service, course: Course, draw: random.Random) -> str:
    _next_after(service, "worker").suspend()
    return ""


def _a_kill_and_another(service: Service, course: Course, draw: random.Random) -> str:
    """The next incarnation as soon as it is there."""
    first = _kill(service, "worker")
    _next_after(service, "worker", first.pid).kill()
    return ""


KINDS: dict[str, Callable[[Service, Course, random.Random], str]] = {
    "worker killed": killing("worker"),
    "worker killed twice": _a_kill_and_another,
    "engine killed": killing("engine"),
    "both killed": killing("worker", "engine"),
    "frontend killed": killing("frontend"),
    "fork server of workers killed": killing("worker-fork-server"),
    "fork server of frontends killed": killing("frontend-fork-server"),
    "worker stopped": _suspend,
    "helper killed": _kill_a_helper,
    "20 cancels": _cancel_twenty,
}
"""Of a soak. Preemptions are there all the time: it has memory for fewer sequences than may run."""


def at(fault: Fault, service: Service, total: int, draw: random.Random, told: list[str]) -> Callable[[Course], None]:
    """What strikes at a moment that is drawn between the first token and the fault's latest."""
    moment = draw.randint(1, max(1, int(total * fault.latest)))

    def during(course: Course) -> None:
        if not course.wait_for(moment):
            told.append("FAILED: the streams ended before it struck")
            return
        try:
            if said := fault.strike(service, course, draw):
                told.append(said)
        except Exception as error:
            told.append(f"FAILED: {error}")

    return during


def every(interval_s: float, service: Service, draw: random.Random, over: threading.Event, told: list[str]) -> None:
    """A fault of any kind at every interval, until it is over."""
    while not over.wait(interval_s):
        kind = draw.choice(list(KINDS))
        try:
            KINDS[kind](service, Course(), draw)
            told.append(kind)
        except Exception as error:  # told, so that the soak does not go on without faults and hold
            told.append(f"FAILED: {kind}: {type(error).__name__}: {error}")
