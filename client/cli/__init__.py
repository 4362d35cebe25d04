"""The command `pagewire`: one module per command, each with `add_parser` and `run`.

Results go to stdout, all else to stderr. Exit status: 0 done; 1 it failed, with one line that says why; 2 a wrong
argument; 130 interrupted; 141 whoever read the output has gone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import cast

from pagewire.client import installed
from pagewire.client.cli import bench, chat, doctor, generate, health, models, serve
from pagewire.client.cli.output import complain
from pagewire.client.errors import PagewireError

_INTERRUPTED = 130
_BROKEN_PIPE = 141

Run = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status. Raises SystemExit for a wrong argument, as argparse does."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] in (["serve"], ["worker"]):  # their flags are the service's own
            serve.replace_process(arguments[0], arguments[1:])
        parsed = _parser().parse_args(arguments)
        parsed.arguments = arguments
        status = cast(Run, parsed.run)(parsed)
        sys.stdout.flush()
        return status
    except PagewireError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # What is still buffered can go nowhere; without this the interpreter would complain about it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pagewire", description="Language models over gRPC: serve them, and use them."
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"pagewire {installed.version(installed.DISTRIBUTION) or 'of a source tree'}",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (serve, generate, chat, models, health, doctor, bench):
        module.add_parser(commands)
    return parser
