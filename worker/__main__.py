"""`python -m pagewire.worker run`: a worker process under a supervisor. `… fork-server`: what it forks workers
from. `… probe`: what this machine has, as JSON.

Exit status of a worker: 0 told to stop; 1 could not load; 3 a plan or step failed; 70 the supervisor went away;
75 another rank did.
"""

import argparse
import gc
import logging
import os
import signal
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import get_args

import msgspec

from pagewire.wire.control import Failed, Loading, Ready, Stop
from pagewire.wire.fork_server import ForkServer, rename_process
from pagewire.wire.launch import UNKNOWN_INCARNATION, Device
from pagewire.wire.lifeline import RANKS_LOST_STATUS, Lifeline
from pagewire.wire.log_lines import LogFormat, set_up_logging
from pagewire.worker.devices import import_modules, load_device
from pagewire.worker.launch import LaunchError, read_launch
from pagewire.worker.link import EngineLink, LinkError, await_engine
from pagewire.worker.loop import Inbox, WorkerLoop

_log = logging.getLogger("pagewire.worker")
STOPPED_STATUS = 0
LOAD_FAILED_STATUS = 1
STEP_FAILED_STATUS = 3

_FLUSH_S = 1.0
"""How long a last message (WorkerFailed) may take to reach the engine."""


class _StopRequested(Exception):
    """Stop arrived while the model was loading."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pagewire.worker", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="execute an engine's step plans; started by `pagewire serve`")
    run.add_argument("--launch", type=Path, required=True, metavar="FILE", help="WorkerLaunch as JSON")
    run.add_argument("--lifeline-fd", type=int, required=True, metavar="N", help="inherited socket to the supervisor")
    forks = commands.add_parser("fork-server", help="fork workers; started by `pagewire serve`")
    forks.add_argument("--device", choices=get_args(Device), required=True, help="import what workers of it need")
    forks.add_argument("--requests-fd", type=int, required=True, metavar="N", help="inherited socket to the supervisor")
    commands.add_parser("probe", help="print what this machine has for a worker, as one JSON object")
    arguments = parser.parse_args(argv)
    if arguments.command == "probe":
        return _probe()
    if arguments.command == "fork-server":
        return _fork(arguments.device, arguments.requests_fd)
    return _run(arguments.launch, arguments.lifeline_fd)


def _probe() -> int:
    from pagewire.worker.probe import probe

    print(msgspec.json.encode(probe()).decode())
    return 0


def _fork(device: Device, requests_fd: int) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start = ForkServer(requests_fd).serve(partial(import_modules, device))
    if start is None:
        return STOPPED_STATUS
    rename_process(("-m", "pagewire.worker", "run"), start.launch_file)
    return _run(start.launch_file, start.lifeline_fd)


def _run(launch_file: Path, lifeline_fd: int) -> int:
    inbox = Inbox()
    # Ctrl-C reaches every process of the terminal's group; what it means is the supervisor's to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _signal, _frame: inbox.put(Stop()))
    lifeline = Lifeline(lifeline_fd)
    lifeline.watch(inbox.put)

    def progress(stage: str, fraction: float) -> None:
        while (command := inbox.take()) is not None:
            if isinstance(command, Stop):  # others concern an engine that this worker has not met yet
                raise _StopRequested
        lifeline.send(Loading(stage, fraction))

    def rank_lost(reason: str) -> None:
        # The main thread may be waiting for that rank within a step, where nothing can wake it.
        _log_error(reason)
        lifeline.send(Failed(reason))
        os._exit(RANKS_LOST_STATUS)

    try:
        launch = read_launch(launch_file)
        _set_up_log(f"worker {launch.rank}", launch.log_format)
        if launch.incarnation == UNKNOWN_INCARNATION:  # who has no part in this must not come between the ranks
            await_engine(launch.engine, progress)
        loaded = load_device(launch, progress, rank_lost, inbox.wake)
    except _StopRequested:
        return STOPPED_STATUS
    except (LaunchError, LinkError) as error:
        _log_error(str(error))
        lifeline.send(Failed(str(error)))
        return LOAD_FAILED_STATUS
    except BaseException as error:  # libraries written in Rust panic, which is no Exception
        _log_error(traceback.format_exc().rstrip())
        lifeline.send(Failed(f"the worker could not load: {type(error).__name__}: {error}"))
        return LOAD_FAILED_STATUS
    # What is loaded stays: a full collection over torch's objects would stall a step for tens of milliseconds.
    gc.collect()
    gc.freeze()
    link = EngineLink(launch.engine, f"{loaded.hello.rank}:{loaded.hello.incarnation}")
    for note in loaded.notes:
        _log.info("%s", note)
    loop = WorkerLoop(link=link, runner=loaded.runner, inbox=inbox, hello=loaded.hello, log=_log_error)
    lifeline.send(Ready(num_blocks=loaded.hello.num_blocks))
    try:
        failure = loop.serve()
    except LinkError as error:
        failure = str(error)
    if failure is not None:
        _log_error(failure)
        lifeline.send(Failed(failure))
    link.close(flush_s=0 if failure is None else _FLUSH_S)
    return STOPPED_STATUS if failure is None else STEP_FAILED_STATUS


def _set_up_log(process: str, log_format: LogFormat) -> None:
    """Once. Libraries' lines are written from WARNING on."""
    set_up_logging(process, "warning", log_format, text="worker: %(message)s")
    _log.setLevel(logging.INFO)


def _log_error(message: str) -> None:
    _set_up_log("worker", "text")  # where no launch has said how
    _log.error("%s", message)


if __name__ == "__main__":
    sys.exit(main())
