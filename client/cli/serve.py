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


def missing() -> list[str]:
    """What `serve` and `worker` need and this installation lacks."""
    return installed.missing("scheduler")


def lacking(command: str) -> LaunchError:
    """Why the command cannot run."""
    return LaunchError(f"{command} needs {', '.join(missing())}: pip install 'pagewire[all]'")


def replace_process(arguments: Sequence[str]) -> NoReturn:
    """Never returns. Nothing has been printed yet, and a closed standard stream stays closed."""
    # -P: a file of the working directory must not stand in for a module of Python's own.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "pagewire.scheduler_svc", *arguments])
