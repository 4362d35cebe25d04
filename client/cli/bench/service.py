"""Which service a benchmark measures: one that runs, or one of its own, started with the settings that it needs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pagewire.client.bench.session import Service
from pagewire.client.cli import connection
from pagewire.client.errors import InvalidRequest, Unavailable
from pagewire.client.local import LocalService, Setting
from pagewire.client.retry import NO_RETRY
from pagewire.client.sync import Client
from pagewire.client.transport import Transport
from pagewire.client.types import Model


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--target or --spawn, and AdminService beside a target."""
    connection.add_model_flags(parser)
    group = parser.add_argument_group("operator")
    group.add_argument(
        "--admin-target",
        metavar="HOST:PORT",
        help="AdminService of the --target service, for its idle share, settings and cache (known with --spawn)",
    )
    group.add_argument("--admin-api-key", metavar="KEY", help="its key, where the service has keys")


@contextmanager
def service(args: argparse.Namespace, model: str, needed: Mapping[str, Setting]) -> Iterator[Service]:
    """The service that the flags describe. A spawned one gets `model` unless --model says another, and `needed`
    except where --set says otherwise. Raises PagewireErrors where there is none."""
    if not args.spawn:
        if args.settings:
            raise InvalidRequest(f"--set {args.settings[0][0]} is a setting of a --spawn service")
        tls = connection.tls(args)
        admin = None
        if args.admin_target:
            admin = Transport(target=args.admin_target, api_key=args.admin_api_key, tls=tls)
        transport = Transport(target=args.target, api_key=args.api_key, tls=tls)
        yield Service(transport=transport, admin=admin, model=_model(args))
        return
    if vars(args).get("admin_target"):
        raise InvalidRequest("--admin-target goes with --target; a --spawn service's own is known")
    settings = {"log_level": "warning", **needed, **dict(args.settings)}
    spawned = LocalService(args.model or model, settings, quiet=not sys.stderr.isatty())
    try:
        ready = spawned.start(None)
        with Client(ready.address) as client:
            served = client.model()
        admin = Transport(target=ready.admin_address) if ready.admin_address else None
        yield Service(transport=Transport(target=ready.address), admin=admin, model=served)
    finally:
        spawned.stop()


def _model(args: argparse.Namespace) -> Model:
    with connection.client(args, NO_RETRY) as client:
        try:
            return client.model(args.model or "")
        except Unavailable as error:
            if error.reason:
                raise
            raise connection.unreachable(args.target, error) from error
