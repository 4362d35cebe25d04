"""`pagewire health`: whether the service takes requests, for people, probes and scripts."""

from __future__ import annotations

import argparse

from pagewire.client.cli import connection
from pagewire.client.cli.printing import write_json
from pagewire.client.errors import Unavailable
from pagewire.client.retry import NO_RETRY
from pagewire.client.types import HealthStatus


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command and its flags."""
    parser = commands.add_parser(
        "health", help="whether the service takes requests", description="Exit status 0 only when it is SERVING."
    )
    parser.add_argument(
        "--service", default="", metavar="NAME", help="one gRPC service, such as pagewire.v1.InferenceService"
    )
    parser.add_argument("--watch", action="store_true", help="print every change until interrupted")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="without --watch (10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per state")
    connection.add_target_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when SERVING, else 1."""
    with connection.client(args, NO_RETRY) as client:
        try:
            if args.watch:
                for status in client.watch_health(args.service):
                    _show(status, args)
                return 1
            status = client.health(args.service, timeout_s=args.timeout)
        except Unavailable as error:
            if error.reason:
                raise
            raise connection.unreachable(args.target, error) from error
    _show(status, args)
    return 0 if status is HealthStatus.SERVING else 1


def _show(status: HealthStatus, args: argparse.Namespace) -> None:
    if args.json:
        write_json({"target": args.target, "service": args.service, "status": status.value})
    else:
        print(status.value, flush=True)
