"""The standard streams of the service's commands, whatever they were started with: closed, full, without a reader.

A server serves on without them: what it logs to a stderr that is closed or gone is lost, and nothing else is. What a
command was asked to print, and cannot, is `OutputLost`. The last word on why something failed goes to whichever stream
takes it. Nothing here knows what is printed.
"""

import argparse
import logging
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from pagewire.scheduler_svc.startup_errors import StartupError
from pagewire.wire.log_lines import LogFormat

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


_log = logging.getLogger(__name__)


class OutputLost(StartupError):
    """Stdout does not take what the command was asked for."""


class ReaderGone(OutputLost):
    """Whoever read stdout has gone."""


def occupy_closed_streams() -> None:
    """Put /dev/null where a standard stream is closed: the next file or socket would get its number, and with it what
    children and libraries write there. Python's own `sys.stdin` and so on stay None."""
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None:
            try:
                os.fstat(number)
            except OSError:
                null = os.open(os.devnull, os.O_RDWR)
                os.dup2(null, number)
                os.set_inheritable(number, True)
                if null != number:
                    os.close(null)
    if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a character that its encoding lacks is no reason to end


def write_result(text: str) -> None:
    """Print what the command was asked for. Raises OutputLost."""
    if sys.stdout is None:
        raise OutputLost("standard output is closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        _forget_output()
        kind = ReaderGone if isinstance(error, BrokenPipeError) else OutputLost
        raise kind(f"standard output cannot be written: {error.strerror}") from error


def announce(line: str) -> None:
    """Print a line for whoever reads stdout, if anyone does."""
    with suppress(OutputLost):
        write_result(f"{line}\n")


def say(text: str) -> None:
    """Print on stderr, or on stdout where stderr does not take it."""
    for stream in (sys.stderr, sys.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.write(text)
                stream.flush()
                return


def complain(message: str, log_format: LogFormat = "text") -> None:
    """Say why the command failed: in the log where that is JSON, else on whichever stream takes it."""
    if log_format == "json":
        _log.critical("%s", message)
    else:
        say(f"pagewire: {message}\n")


class ArgumentParser(argparse.ArgumentParser):
    """argparse's own prints nothing where a stream does not take it, and says that all went well."""

    def print_help(self, file: "SupportsWrite[str] | None" = None) -> None:
        """Raises OutputLost."""
        write_result(self.format_help())

    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:
        say(message)


def _forget_output() -> None:
    """What is still buffered can go nowhere; the interpreter would complain about it at its end."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
