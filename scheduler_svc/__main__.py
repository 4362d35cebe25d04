"""`python -m pagewire.scheduler_svc serve` and `... worker`, which `pagewire serve` and `pagewire worker` run, and
`... models`.

Settings are made here, once, and handed down. Exit status: 0 after draining; 1 where the server could not start or go
on, or what was asked for could not be printed; 2 for wrong settings; 128 + N where signal N ended it at once; 141
whoever read the output has gone.
"""

import argparse
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from pagewire.scheduler_svc.models.cache import cache_dir_of
from pagewire.scheduler_svc.settings import sources
from pagewire.scheduler_svc.settings.auto_device import AutoDevice, choose_auto, find_cuda
from pagewire.scheduler_svc.settings.settings import Settings
from pagewire.scheduler_svc.standard_streams import (
    ArgumentParser,
    OutputLost,
    ReaderGone,
    complain,
    occupy_closed_streams,
    write_result,
)
from pagewire.scheduler_svc.startup_errors import SettingsError, StartupError
from pagewire.scheduler_svc.supervisor.host import watch_parent
from pagewire.scheduler_svc.supervisor.server_plan import Commands
from pagewire.wire.log_lines import set_up_logging

_BROKEN_PIPE = 141
_STDERR = 2


def main(argv: list[str] | None = None, commands: Commands | None = None) -> int:
    """Run the command; returns the exit status. `commands` says how to start children, if not as usual."""
    occupy_closed_streams()
    try:
        arguments = _parser().parse_args(argv)
        if arguments.command == "models":
            return _models(arguments)
        if arguments.command == "device":
            return _device()
        if arguments.command == "worker":
            return _worker(arguments, commands or Commands())
        return _serve(arguments, commands or Commands())
    except ReaderGone:
        return _BROKEN_PIPE
    except StartupError as error:
        complain(str(error))  # settings are not known, or nobody asked for a log
        return _status_of(error)


def _status_of(error: StartupError) -> int:
    return 2 if isinstance(error, SettingsError) else 1


class _Interrupted(KeyboardInterrupt):
    """A signal came before the supervisor's loop could take it. Whoever answers for failures lets it through, as any
    Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.number = number


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="pagewire", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve a model over gRPC",
        description="Serve a model over gRPC. Every setting is taken from its flag, else from its environment "
        "variable, else from the TOML file of --config, else from its default.",
        allow_abbrev=False,
    )
    serve.add_argument("--config", metavar="FILE", help="TOML file with settings [PAGEWIRE_CONFIG]")
    serve.add_argument("--print-config", action="store_true", help="print every setting and its origin, and exit")
    serve.add_argument("--quiet", action="store_true", help="no progress on stderr")
    serve.add_argument(
        "--ready-fd", type=int, metavar="N", help="inherited descriptor that gets a JSON line when ready"
    )
    serve.add_argument("--ready-file", type=Path, metavar="FILE", help="file that gets the same line, removed at exit")
    serve.add_argument(
        "--parent-fd", type=int, metavar="N", help="inherited pipe; its end-of-file ends the server like SIGTERM"
    )
    serve.add_argument("--make-curve-keys", type=Path, metavar="DIR", help="write CURVE keys into DIR, and exit")
    sources.add_flags(serve)
    worker = commands.add_parser(
        "worker",
        help="run a rank of a model that another host serves",
        description="Run one rank of a model for a server on another host, started with --remote-workers. Settings "
        "come from where `serve` has them and must be the same as the server's: give both one --config file.",
        allow_abbrev=False,
    )
    worker.add_argument("--config", metavar="FILE", help="TOML file with settings [PAGEWIRE_CONFIG]")
    worker.add_argument("--quiet", action="store_true", help="no progress on stderr")
    worker.add_argument("--rank", type=int, required=True, metavar="R", help="which rank to run")
    worker.add_argument(
        "--connect", required=True, metavar="tcp://HOST:PORT", help="where the server's engine listens for workers"
    )
    sources.add_flags(worker, workers_alone=True)
    commands.add_parser(
        "device",
        help="say what device auto is here",
        description="Say what device `auto` is on this machine, and why, as one JSON object.",
    )
    models = commands.add_parser(
        "models", help="list the models that can be named", description="List the models that can be named."
    )
    models.add_argument("--cached", action="store_true", help="only what this machine holds")
    models.add_argument("--json", action="store_true", help="print one JSON object")
    models.add_argument("--cache-dir", metavar="DIR", help="as for serve [PAGEWIRE_CACHE_DIR]")
    return parser


def _models(arguments: argparse.Namespace) -> int:
    from pagewire.scheduler_svc.models.resolve import as_table, known_models

    wanted = arguments.cache_dir or os.environ.get("PAGEWIRE_CACHE_DIR")
    known = known_models(cache_dir_of(wanted, os.environ), arguments.cached)
    write_result(msgspec.json.encode(known).decode() + "\n" if arguments.json else as_table(known))
    return 0


def _device() -> int:
    """For a server whose other settings are their defaults."""
    chosen: list[AutoDevice] = []

    def choose(values: Mapping[str, Any]) -> AutoDevice:
        chosen.append(choose_auto(values, find_cuda))
        return chosen[0]

    sources.resolve({"device": "auto"}, {}, None, choose)
    write_result(msgspec.json.encode(chosen[0]).decode() + "\n")
    return 0


def _serve(arguments: argparse.Namespace, commands: Commands) -> int:
    if arguments.make_curve_keys is not None:
        from pagewire.scheduler_svc.supervisor.curve_keys import make_curve_keys

        make_curve_keys(arguments.make_curve_keys)
        return 0
    resolved = sources.resolve(
        vars(arguments), os.environ, arguments.config, lambda values: choose_auto(values, find_cuda)
    )
    if arguments.print_config:
        write_result(sources.render(resolved))
        return 0
    _take_charge(resolved.settings, "supervisor")
    _tell_device(resolved)
    if arguments.parent_fd is not None:
        watch_parent(arguments.parent_fd)
    return _until_interrupted(lambda: _run_server(arguments, resolved.settings, commands), resolved.settings)


def _worker(arguments: argparse.Namespace, commands: Commands) -> int:
    if not arguments.connect.startswith("tcp://"):
        raise SettingsError(f"--connect {arguments.connect} must be tcp://host:port")
    flags = vars(arguments) | {"worker_transport": arguments.connect}
    one_rank = {"tensor_parallel_size": 1, "remote_workers": 0}
    resolved = sources.resolve(
        flags, os.environ, arguments.config, lambda values: choose_auto({**values, **one_rank}, find_cuda)
    )
    settings = resolved.settings
    _take_charge(settings, f"rank {arguments.rank}")
    _tell_device(resolved)
    return _until_interrupted(lambda: _run_rank(arguments, settings, commands), settings)


def _run_server(arguments: argparse.Namespace, settings: Settings, commands: Commands) -> int:
    from pagewire.scheduler_svc.serving import run_server
    from pagewire.scheduler_svc.supervisor.ready_report import ReadyReport

    ready = ReadyReport(arguments.ready_fd, arguments.ready_file)
    return run_server(settings, commands, ready, quiet=arguments.quiet)


def _run_rank(arguments: argparse.Namespace, settings: Settings, commands: Commands) -> int:
    from pagewire.scheduler_svc.serving import run_rank

    return run_rank(settings, arguments.rank, commands, quiet=arguments.quiet)


def _tell_device(resolved: sources.Resolved) -> None:
    """What `auto` came to: a machine whose GPU is not used should not look as if it were."""
    origin = resolved.origins["device"]
    if origin.startswith("auto: "):
        logging.info("device %s: %s", resolved.settings.device, origin.removeprefix("auto: "))


def _take_charge(settings: Settings, who: str) -> None:
    """Logging, and signals until the supervisor's loop takes them."""
    set_up_logging(who, settings.log_level, settings.log_format)
    # systemd's watchdog ends a supervisor that stands still with SIGABRT: say where it stood.
    faulthandler.enable(_STDERR)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _until_interrupted(run: Callable[[], int], settings: Settings) -> int:
    try:
        return run()
    except ReaderGone:
        raise
    except StartupError as error:
        complain(str(error), settings.log_format)
        return _status_of(error)
    except _Interrupted as interrupted:
        # A plain return would wait for the threads of a download to end; everything of ours is cleaned up by now.
        with suppress(OutputLost):
            write_result("")
        os._exit(128 + interrupted.number)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise _Interrupted(number)


if __name__ == "__main__":
    sys.exit(main())
