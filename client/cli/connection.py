"""Connection flags: which service a command talks to, and the client that they describe."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pagewire.client.errors import PagewireError, Unavailable
from pagewire.client.local import DEFAULT_MODEL, Setting, local
from pagewire.client.retry import NO_RETRY, RetryPolicy
from pagewire.client.sync import Client
from pagewire.client.transport import DEFAULT_TARGET, Tls
from pagewire.client.types import Model

_WORDS: dict[str, bool] = {"true": True, "false": False}


class Unreachable(PagewireError):
    """No service answers at the target."""


@dataclass(frozen=True, slots=True)
class Connected:
    """A client, and the model that it will use."""

    client: Client
    model: Model


def add_target_flags(parser: argparse.ArgumentParser) -> None:
    """How to reach a service that runs."""
    group = parser.add_argument_group("service")
    group.add_argument(
        "--target",
        default=os.environ.get("PAGEWIRE_TARGET") or DEFAULT_TARGET,
        metavar="HOST:PORT",
        help=f"where the service listens (PAGEWIRE_TARGET, else {DEFAULT_TARGET})",
    )
    group.add_argument(
        "--api-key",
        default=os.environ.get("PAGEWIRE_API_KEY") or None,
        metavar="KEY",
        help="better given as PAGEWIRE_API_KEY: other users can read a command line",
    )
    _add_tls_flags(group)


def add_admin_flags(parser: argparse.ArgumentParser, default_target: str) -> None:
    """How to reach the AdminService of one."""
    group = parser.add_argument_group("service")
    group.add_argument(
        "--admin-target",
        default=default_target,
        metavar="HOST:PORT",
        help=f"where its AdminService listens ({default_target})",
    )
    group.add_argument("--admin-api-key", metavar="KEY", help="its key, where the service has keys")
    _add_tls_flags(group)


def _add_tls_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--tls", action="store_true", help="use TLS, with the system's certificates")
    group.add_argument(
        "--tls-ca", metavar="FILE", help="use TLS; PEM file with the CA that signed the server's certificate"
    )
    group.add_argument("--tls-certificate", metavar="FILE", help="use TLS; PEM file with the client's own certificate")
    group.add_argument("--tls-key", metavar="FILE", help="PEM file with its key")
    group.add_argument("--tls-server-name", metavar="NAME", help="what its certificate says, if not the target")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Which model, and a service of this command's own."""
    add_target_flags(parser)
    group = add_spawn_flags(parser)
    group.add_argument("--spawn", action="store_true", help="start a service on this machine for this command")


def add_spawn_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What a service of this command's own serves, and how."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="NAME", help=f"the served model's name; with --spawn what to serve ({DEFAULT_MODEL})"
    )
    group.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        type=_setting,
        metavar="NAME=VALUE",
        help="a setting of the --spawn service, as in `pagewire serve --help`; may be repeated",
    )
    return group


def client(args: argparse.Namespace, retry: RetryPolicy | None = None) -> Client:
    """A client of the service that the target flags describe."""
    return Client(args.target, api_key=args.api_key, tls=tls(args), retry=retry)


def tls(args: argparse.Namespace) -> Tls | None:
    """What the TLS flags say; none where they say nothing."""
    if not (args.tls or args.tls_ca or args.tls_certificate or args.tls_key or args.tls_server_name):
        return None
    return Tls(
        ca_file=args.tls_ca,
        certificate_file=args.tls_certificate,
        key_file=args.tls_key,
        server_name=args.tls_server_name,
    )


@contextmanager
def connect(args: argparse.Namespace) -> Iterator[Connected]:
    """A client of the service that the model flags describe, started first where --spawn asks for it."""
    if args.spawn:
        with local(
            DEFAULT_MODEL if args.model is None else args.model, quiet=not sys.stderr.isatty(), **dict(args.settings)
        ) as spawned:
            yield Connected(spawned, spawned.model())
        return
    # Nobody is helped by seconds of retrying where no service was started.
    with client(args, NO_RETRY) as first:
        try:
            model = first.model(args.model or "")
        except Unavailable as error:
            if error.reason:
                raise
            raise Unreachable(f"{unreachable(args.target, error)}, or use --spawn") from error
    with client(args) as connected:
        yield Connected(connected, model)


def unreachable(target: str, error: Unavailable) -> Unreachable:
    """What to say where no service answers, without gRPC's list of addresses tried."""
    cause = str(error).rpartition(": ")[2]
    return Unreachable(f"no service answers at {target} ({cause}); start one with `pagewire serve`")


def _setting(text: str) -> tuple[str, Setting]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name.replace("-", "_"), _WORDS.get(value.lower(), value)
