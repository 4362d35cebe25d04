"""`pagewire serve`: becomes the supervisor's process. Its flags, help and exit status are the service's own."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from pagewire.client import installed
from pagewire.client.errors import LaunchError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """For the list of commands alone: `main` sees `serve` before argparse does."""
    commands.add_parser("serve", help="serve a model", add_help=False)


def replace_process(flags: Sequence[str]) -> NoReturn:
    """Never returns. Raises LaunchError where the service's parts are not installed."""
    gone = installed.missing("scheduler")
    if gone:
        raise LaunchError(f"serve needs {', '.join(gone)}: pip install 'pagewire[all]'")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "pagewire.scheduler_svc", "serve", *flags])
