"""`python -m pagewire.scheduler_svc.engine --launch FILE --lifeline-fd N`: one engine process.

Builds everything once and hands it down. The supervisor starts it; nobody else has a reason to. A broken invariant ends
it with status 1 and is told to the supervisor, which starts another: frontends have what streams go on from.
"""

import argparse
import contextlib
import logging
import signal
import sys
import time
from pathlib import Path

from pagewire.scheduler_svc.endings import is_ending
from pagewire.scheduler_svc.engine.kv_event_publisher import KvEventPublisher
from pagewire.scheduler_svc.engine.links import FrontendLink, WorkerLink
from pagewire.scheduler_svc.engine.loop import BORDERS, EngineLoop
from pagewire.scheduler_svc.engine.router_sockets import RouterSockets
from pagewire.scheduler_svc.engine.worker_group import WorkerGroup
from pagewire.scheduler_svc.launch import EngineLaunch, read_launch
from pagewire.scheduler_svc.startup_errors import StartupError
from pagewire.wire.control import Failed
from pagewire.wire.lifeline import Lifeline
from pagewire.wire.log_lines import set_up_logging

_log = logging.getLogger(__name__)


def main() -> int:
    """Run the engine; its exit status is 0 only when it was told to stop."""
    parser = argparse.ArgumentParser(prog="pagewire-engine")
    parser.add_argument("--launch", type=Path, required=True)
    parser.add_argument("--lifeline-fd", type=int, required=True)
    arguments = parser.parse_args()
    # A terminal sends Ctrl-C to the whole process group; what it means is the supervisor's to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    lifeline = Lifeline(arguments.lifeline_fd)
    try:
        launch = read_launch(arguments.launch, EngineLaunch)
    except StartupError as error:
        lifeline.send(Failed(str(error)))
        return 1
    set_up_logging("engine", launch.log_level, launch.log_format)
    with RouterSockets() as sockets, contextlib.ExitStack() as publishing:
        try:
            frontends, workers = map(sockets.bind, (launch.frontends, launch.workers), BORDERS)
            kv_events = None
            if launch.kv_events is not None:
                kv_events = publishing.enter_context(KvEventPublisher(launch.kv_events))
        except StartupError as error:
            lifeline.send(Failed(str(error)))
            return 1
        group = WorkerGroup(launch)
        worker_link = WorkerLink(workers, group.refusal)
        loop = EngineLoop(
            launch, FrontendLink(frontends), worker_link, group, lifeline, time.monotonic, kv_events, sockets.refused
        )
        try:
            return loop.run()
        except BaseException as error:
            if is_ending(error):
                raise
            _log.critical("the engine cannot go on", exc_info=error)
            lifeline.send(Failed(f"internal error in the engine: {error}"))
            return 1


if __name__ == "__main__":
    sys.exit(main())
