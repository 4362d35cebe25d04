"""Tells systemd how far the service is (sd_notify(3)), where it was started with Type=notify."""

import socket
from collections.abc import Mapping


class SystemdNotifier:
    """Sends state lines to $NOTIFY_SOCKET; silent where there is none, or where nobody listens any more."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def notify(self, *lines: str) -> None:
        """Send lines such as READY=1."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
            try:
                datagrams.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                return
