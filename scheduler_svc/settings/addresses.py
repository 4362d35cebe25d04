"""Addresses to listen on, as text: whether they are well formed, and who can reach them.

Nothing here listens; `check_port_unused` alone opens a socket, for a moment.
"""

import ipaddress
import socket

from pagewire.scheduler_svc.startup_errors import SettingsError

MAX_UNIX_PATH_BYTES = 107
"""Linux' limit on the path of a Unix socket."""


def check_address(name: str, address: str) -> None:
    """Raise SettingsError unless `address` is host:port or unix:/absolute/path."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path.startswith("/"):
            raise SettingsError(f"{name} = {address!r}: the path of a Unix socket must be absolute")
        if len(path.encode()) > MAX_UNIX_PATH_BYTES:
            raise SettingsError(
                f"{name} = {address!r}: the path is {len(path.encode())} bytes long, the limit is {MAX_UNIX_PATH_BYTES}"
            )
        return
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise SettingsError(f"{name} = {address!r} must be host:port with a port of 0 to 65535, or unix:/path")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise SettingsError(f"{name} = {address!r}: an IPv6 address stands in brackets, such as [::1]:50051")


def is_loopback(address: str) -> bool:
    """Whether only this machine can connect."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_port_unused(name: str, address: str) -> None:
    """Raise SettingsError where somebody listens on the port already.

    Needed where processes share a port: binding with SO_REUSEPORT succeeds beside another server of the same user, and
    the two would then answer each other's clients.
    """
    host, _, port = address.rpartition(":")
    if address.startswith("unix:") or port == "0":
        return
    try:
        for family, kind, protocol, _, target in socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(target)
    except OSError as error:
        raise SettingsError(f"{name} = {address!r} cannot be listened on: {error.strerror or error}") from error
