"""`pagewire serve` and `pagewire worker`: become the process of the service's own command, with its flags, help and
exit status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from pagewire.client import installed
from pagewire.client.errors import LaunchError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """For the list of commands alone: `main` sees them before argparse does."""
    commands.add_parser("serve", help="serve a model", add_help=False)
    commands.add_parser("worker", help="run a rank of a model that another host serves", add_help=False)


def replace_process(command: str, flags: Sequence[str]) -> NoReturn:
    """Never returns. Raises LaunchError where the service's parts are not installed."""
    gone = installed.missing("scheduler")
    if gone:
        raise LaunchError(f"{command} needs {', '.join(gone)}: pip install 'pagewire[all]'")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "pagewire.scheduler_svc", command, *flags])
