"""The command `pagewire`, from arguments to an exit status: one module per command, each with `add_parser` and `run`.

Results go to stdout, all else to stderr, or to whichever of them is open. Exit status: 0 done; 1 it failed, with one
line that says why; 2 a wrong argument; 130 interrupted; 141 whoever read the output has gone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from pagewire.client import installed
from pagewire.client.bench import control_plane, engine, throughput
from pagewire.client.bench import serve as serve_under_load
from pagewire.client.cli import chat, doctor, gateway, generate, health, interrupt, models, serve, streams, top
from pagewire.client.cli.printing import complain, say
from pagewire.client.errors import PagewireError

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

_BROKEN_PIPE = 141

Run = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status. Raises SystemExit for a wrong argument, as argparse does."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    of_the_service = arguments[:1] in (["serve"], ["worker"])  # whose flags and streams are the service's own
    if of_the_service and not serve.missing():
        serve.replace_process(arguments)
    with streams.standard_streams():
        try:
            if of_the_service:
                raise serve.lacking(arguments[0])
            return _run(arguments)
        except PagewireError as error:
            complain(str(error))
            return 1
        except KeyboardInterrupt:
            return interrupt.INTERRUPTED
        except streams.ReaderGone:
            streams.forget_stdout()
            return _BROKEN_PIPE
        except streams.StdoutLost as error:
            streams.forget_stdout()
            complain(f"standard output cannot be written: {error}")
            return 1
        except UnicodeEncodeError as error:  # an argument or a variable that is no text
            complain(f"{error.object!r} is no text: {error}")
            return 1
        except (OSError, UnicodeError) as error:
            complain(str(error))
            return 1


def _run(arguments: Sequence[str]) -> int:
    try:
        parsed = _parser().parse_args(arguments)
    except SystemExit:  # it printed its help, or what is wrong
        sys.stdout.flush()
        raise
    parsed.arguments = arguments
    if getattr(parsed, "hears_signals", False):  # it ends what it serves in good order, by itself
        status = cast(Run, parsed.run)(parsed)
    else:
        with interrupt.ends_program():
            status = cast(Run, parsed.run)(parsed)
    sys.stdout.flush()
    return status


class _Parser(argparse.ArgumentParser):
    """argparse's own prints nothing of what is wrong where stderr does not take it."""

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        if file is sys.stdout:
            super()._print_message(message, file)
        else:
            say(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="pagewire", description="Language models over gRPC: serve them, and use them.")
    parser.add_argument(
        "--version",
        action="version",
        version=f"pagewire {installed.version(installed.DISTRIBUTION) or 'of a source tree'}",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (serve, generate, chat, gateway, top, models, health, doctor):
        command.add_parser(commands)
    bench = commands.add_parser(
        "bench", help="measure a service", description="Measure a service, or the engine alone."
    )
    measurements = bench.add_subparsers(metavar="MEASUREMENT", required=True)
    for measurement in (throughput, serve_under_load, engine, control_plane):
        measurement.add_parser(measurements)
    return parser


if __name__ == "__main__":
    sys.exit(main())
