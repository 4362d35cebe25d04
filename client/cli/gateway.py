"""`pagewire gateway`: OpenAI's endpoints in front of a service."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import signal
import socket
import threading

from pagewire.client import installed
from pagewire.client.cli import connection
from pagewire.client.cli.printing import say
from pagewire.client.errors import (
    InvalidRequest,
    LaunchError,
    PagewireError,
    PermissionDenied,
    Unauthenticated,
)
from pagewire.client.retry import NO_RETRY

DEFAULT_LISTEN = "127.0.0.1:8000"

_ADDRESS = re.compile(r"\[?(?P<host>[^\[\]]*?)\]?:(?P<port>\d{1,5})")
_INHERITED = re.compile(r"fd:(\d{1,9})")
_GRACE_S = 30
"""For what runs when the gateway is told to end."""
_ASK_S = 5.0
"""How long the service may take to say whether it asks callers for keys."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command and its flags."""
    parser = commands.add_parser(
        "gateway",
        help="OpenAI's endpoints in front of a service",
        description="Serve /v1/chat/completions, /v1/completions and /v1/models over HTTP, and answer from a Pagewire "
        "service. A caller's API key goes on to the service; --api-key is for those who bring none.",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="listen on an address open to other machines though the service answers callers who bring no key",
    )
    parser.add_argument(
        "--listen",
        default=DEFAULT_LISTEN,
        metavar="HOST:PORT",
        help=f"where to listen; port 0 is any, fd:N an inherited socket that listens already ({DEFAULT_LISTEN})",
    )
    parser.add_argument(
        "--parent-fd", type=int, metavar="N", help="inherited descriptor of a pipe; at its end the gateway ends"
    )
    connection.add_target_flags(parser)
    parser.add_argument(
        "--admin",
        metavar="HOST:PORT",
        help="the service's admin address: the page then shows the engine live, to all who may use that address",
    )
    parser.set_defaults(run=run, hears_signals=True)


def run(args: argparse.Namespace) -> int:
    """0 when it was told to end."""
    if missing := installed.missing("gateway"):
        raise LaunchError(f"gateway needs {', '.join(missing)}: pip install 'pagewire[gateway]'")
    import uvicorn

    from pagewire.client.aio import AsyncClient
    from pagewire.client.gateway.app import Gateway
    from pagewire.client.transport import Transport

    if not args.target:
        raise InvalidRequest("--target is empty; it must be HOST:PORT or unix:/path")
    tls = connection.tls(args)
    if not args.insecure:
        _check_exposure(args)

    def open_client(api_key: str | None) -> AsyncClient:
        return AsyncClient(args.target, api_key=api_key or args.api_key, tls=tls)

    def open_admin(api_key: str | None) -> Transport:
        return Transport(target=args.admin, api_key=api_key or args.api_key, tls=tls)

    gateway = Gateway(open_client, open_admin if args.admin else None)

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            gateway.end_watching()
            await super().shutdown(sockets)

    listener = _listener(args.listen)
    config = uvicorn.Config(
        gateway.application(),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
        server_header=False,
    )
    if args.parent_fd is not None:
        _watch_parent(args.parent_fd)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    say(f"pagewire: http://{shown}:{port}/v1 answers from {args.target}, with a page at http://{shown}:{port}/\n")
    Server(config).run(sockets=[listener])
    return 0


def _check_exposure(args: argparse.Namespace) -> None:
    """The rule of `pagewire serve`: an address that other machines reach needs credentials. Here the service has them.

    Raises LaunchError where the service answers those who bring no key, with what this gateway would lend them, or does
    not say. Whoever hands a socket down answers for it."""
    found = _ADDRESS.fullmatch(args.listen)
    if found is None or _INHERITED.fullmatch(args.listen) or _is_loopback(found["host"]):
        return
    try:
        with connection.client(args, NO_RETRY) as client:
            client.models(timeout_s=_ASK_S)
        why = f"the service at {args.target} answers callers who bring no key"
        if args.api_key:
            why += ", as --api-key (or PAGEWIRE_API_KEY) is lent to them"
    except (Unauthenticated, PermissionDenied):
        return
    except PagewireError as error:
        why = f"the service at {args.target} cannot be asked whether it wants keys ({str(error).rpartition(': ')[2]})"
    raise LaunchError(
        f"listen = {args.listen!r} is open to other machines, and nothing says who may call: {why}; give the service "
        "--api-keys-file FILE, or --insecure here if whoever reaches it may use it"
    )


def _is_loopback(host: str) -> bool:
    """Whether only this machine can connect; a name counts as reachable, whatever it stands for."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _watch_parent(descriptor: int) -> None:
    """End as with SIGTERM when whoever started this process has gone. Raises InvalidRequest."""
    try:
        os.set_inheritable(descriptor, False)
    except OSError as error:
        raise InvalidRequest(f"--parent-fd {descriptor} is not an open descriptor") from error

    def watch() -> None:
        while os.read(descriptor, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _listener(address: str) -> socket.socket:
    """Bound and listening. Raises InvalidRequest for what is no address, LaunchError for one that is taken."""
    if inherited := _INHERITED.fullmatch(address):
        try:
            listener = socket.socket(fileno=int(inherited[1]))
            if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return listener
        except OSError:
            pass
        raise InvalidRequest(f"--listen is {address!r}, which is no socket that listens")
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"]) > 65535:
        raise InvalidRequest(f"--listen is {address!r}; it must be HOST:PORT, with a port up to 65535")
    try:
        family = socket.AF_INET6 if ":" in found["host"] else socket.AF_INET
        return socket.create_server((found["host"], int(found["port"])), family=family, backlog=1024)
    except OSError as error:
        raise LaunchError(f"--listen {address} cannot be used: {error.strerror or error}") from error
