"""`python -m pagewire.scheduler_svc.frontend run`: a frontend process. `… fork-server`: what it is forked from.

A frontend reads its launch file, builds everything once, says Ready, and ends with 0 on a Stop. Exit status 1 means
that it could not start or that an invariant broke; the message went to the supervisor as Failed. Signals are the
supervisor's to decide on: SIGINT, which a terminal sends to the whole group, is ignored, and SIGTERM counts as Stop.
"""

import argparse
import asyncio
import contextlib
import gc
import logging
import secrets
import signal
import sys
import time
from pathlib import Path

import msgspec
from google.protobuf.internal import api_implementation

from pagewire.scheduler_svc.endings import is_ending
from pagewire.scheduler_svc.frontend.app import Frontend, FrontendHost
from pagewire.scheduler_svc.frontend.errors import InternalError
from pagewire.scheduler_svc.frontend.rpc.listener import connections_of_each, connections_within, raise_descriptor_limit
from pagewire.scheduler_svc.frontend.rpc.request_records import request_of_task
from pagewire.scheduler_svc.frontend.text.chat_template import TemplateRefusedError
from pagewire.scheduler_svc.launch import FrontendLaunch, read_launch
from pagewire.scheduler_svc.limited_log import LimitedRecords
from pagewire.scheduler_svc.startup_errors import StartupError
from pagewire.wire.control import Failed, Ready, ToChild
from pagewire.wire.fork_server import ForkServer, rename_process
from pagewire.wire.lifeline import Lifeline
from pagewire.wire.log_lines import set_up_logging

_log = logging.getLogger(__name__)
_START_ERRORS = (StartupError, TemplateRefusedError, OSError, ValueError)


def _require_upb() -> None:
    # protobuf parses in pure Python where its extension is missing or turned off: slow, and each level of a request's
    # nesting is a level of Python's own stack (CVE-2025-4565).
    found = api_implementation.Type()
    if found != "upb":
        raise StartupError(
            f"protobuf runs on its {found!r} implementation; a server needs 'upb': install a protobuf wheel for this "
            "platform, and leave PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION unset"
        )


def _within_descriptors(launch: FrontendLaunch) -> FrontendLaunch:
    room = connections_within(launch.connections.max_connections, raise_descriptor_limit())
    each = connections_of_each(room, launch.listen)
    connections = msgspec.structs.replace(launch.connections, max_connections=each)
    return msgspec.structs.replace(launch, connections=connections)


def _ready(lifeline: Lifeline, ready: Ready) -> None:
    # What has been built lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    lifeline.send(ready)


async def _run(launch: FrontendLaunch, lifeline: Lifeline) -> None:
    loop = asyncio.get_running_loop()
    host = FrontendHost(
        clock=time.monotonic,
        draw_seed=lambda: secrets.randbits(64),
        draw_request_id=lambda: secrets.token_hex(16),
        send=lifeline.send,
        beat=lifeline.beat,
        offer=lifeline.offer,
    )
    frontend = Frontend(launch, host)
    loop.add_signal_handler(signal.SIGTERM, frontend.stop)

    def on_command(command: ToChild) -> None:
        with contextlib.suppress(RuntimeError):  # it ends already, and its loop is closed
            loop.call_soon_threadsafe(frontend.handle, command)

    serving = loop.create_task(frontend.run(lambda ready: _ready(lifeline, ready)))
    lifeline.watch(on_command)
    await serving


def main() -> int:
    """Run the process; returns its exit status."""
    parser = argparse.ArgumentParser(prog="pagewire.scheduler_svc.frontend")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="serve gRPC")
    run.add_argument("--launch", required=True, type=Path, metavar="FILE", help="FrontendLaunch as JSON")
    run.add_argument("--lifeline-fd", required=True, type=int, metavar="N", help="inherited socket to the supervisor")
    forks = commands.add_parser("fork-server", help="fork frontends; started by `pagewire serve`")
    forks.add_argument("--requests-fd", type=int, required=True, metavar="N", help="inherited socket to the supervisor")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if arguments.command == "run":
        return _serve(arguments.launch, arguments.lifeline_fd)
    # All that a frontend imports is imported with this module.
    start = ForkServer(arguments.requests_fd).serve(lambda: None)
    if start is None:
        return 0
    rename_process(("-m", "pagewire.scheduler_svc.frontend", "run"), start.launch_file)
    return _serve(start.launch_file, start.lifeline_fd)


def _serve(launch_file: Path, lifeline_fd: int) -> int:
    lifeline = Lifeline(lifeline_fd)
    try:
        _require_upb()
        launch = read_launch(launch_file, FrontendLaunch)
        set_up_logging("frontend", launch.log_level, launch.log_format, request_of_task)
        # grpc tells of each header that is no UTF-8, with a traceback.
        logging.getLogger("grpc._cython.cygrpc").addFilter(LimitedRecords())
        asyncio.run(_run(_within_descriptors(launch), lifeline))
    except InternalError as error:
        lifeline.send(Failed(f"internal error in a frontend: {error}"))
        return 1
    except _START_ERRORS as error:
        lifeline.send(Failed(str(error)))
        return 1
    except BaseException as error:
        if is_ending(error):
            raise
        _log.exception("the frontend cannot go on")
        lifeline.send(Failed(f"internal error in a frontend: {error!r}"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
