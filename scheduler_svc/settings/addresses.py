"""Addresses to listen on, as text: whether they are well formed, and who can reach them.

Nothing here listens or opens a socket.
"""

import ipaddress

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
