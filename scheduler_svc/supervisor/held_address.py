"""An address that a server's frontends listen on, kept from every other server for as long as the supervisor lives.

Two dangers, neither of which the kernel sees. Frontends share a port by SO_REUSEPORT, so those of a second server of
the same user would be let in beside them and answer half of each other's clients. And gRPC removes the file of a Unix
socket before it binds there, whoever listens behind it. The kernel gives a hold up when the process ends, however it
ends: nothing is left behind that a later start has to judge.

It knows addresses as text, and neither frontends nor gRPC. A port of 0 and a port that one frontend has to itself need
no hold: there the kernel refuses the second by itself.
"""

import contextlib
import errno
import fcntl
import ipaddress
import os
import random
import socket
import sys
import time
from types import TracebackType
from typing import Any

from pagewire.scheduler_svc.startup_errors import SettingsError

_LOCK_SUFFIX = ".lock"
_ANY_FAMILY = "::"
_COLLISIONS = 3
_LONGEST_PAUSE_S = 0.03
_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

_Target = tuple[str, int] | tuple[str, int, int, int]


class HeldAddress:
    """One address, from `hold` to `close`. Use as a context manager."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._lock: int | None = None
        self._lock_path = ""

    @classmethod
    def hold(cls, name: str, address: str, *, is_shared: bool) -> "HeldAddress":
        """Take host:port or unix:/path, the value of the setting `name`. `is_shared`: several frontends will listen.

        Raises SettingsError where somebody else listens or holds it.
        """
        held = cls()
        try:
            if address.startswith("unix:"):
                held._take_path(address.removeprefix("unix:"))
            elif is_shared:
                host, _, port = address.rpartition(":")
                if port != "0":
                    held._take_port(host.strip("[]"), int(port))
        except OSError as error:
            held.close()
            raise SettingsError(f"{name} = {address!r} cannot be listened on: {error.strerror or error}") from error
        return held

    def _take_port(self, host: str, port: int) -> None:
        absent: OSError | None = None
        for family, target in _targets(host, port):
            try:
                self._sockets.append(_bound_once_quiet(family, target))
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                absent = error  # such as ::1 of localhost where IPv6 is off; gRPC does without it too
            if target[0] == _ANY_FAMILY and self._sockets:
                return
        if not self._sockets and absent is not None:
            raise absent

    def _take_path(self, path: str) -> None:
        # Beside the socket, because its own file is replaced by every bind.
        self._lock_path = path + _LOCK_SUFFIX
        while self._lock is None:
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise OSError(0, "another server listens there") from None
            if _is_file(lock, self._lock_path):
                self._lock = lock
            else:
                os.close(lock)  # its holder removed it meanwhile, and nobody else can see this one
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            probe.settimeout(1.0)
            probe.connect(path)
            raise OSError(0, "somebody listens there")  # who is none of ours, and has no lock

    def close(self) -> None:
        """Let it go."""
        for held in self._sockets:
            held.close()
        self._sockets.clear()
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._lock_path)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "HeldAddress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _targets(host: str, port: int) -> list[tuple[int, _Target]]:
    """What to bind, as gRPC does: 0.0.0.0 is to it what [::] is: every address of both families."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_unspecified:
            return [(socket.AF_INET6, (_ANY_FAMILY, port)), (socket.AF_INET, ("0.0.0.0", port))]
    found: list[tuple[int, int, int, str, Any]] = list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    return list(dict.fromkeys((family, target) for family, _, _, _, target in found))


def _bound_once_quiet(family: int, target: _Target) -> socket.socket:
    """As `_bound`. Two that try in the same microseconds may both be told that the other is there: whoever is, still is
    a moment later."""
    for _ in range(_COLLISIONS):
        with contextlib.suppress(OSError):
            return _bound(family, target)
        time.sleep(random.uniform(0.001, _LONGEST_PAUSE_S))
    return _bound(family, target)


def _bound(family: int, target: _Target) -> socket.socket:
    """A socket that keeps strangers out and lets our own frontends in. Raises OSError where somebody is there.

    Binding alone says nothing, where both have SO_REUSEADDR; without it, connections of an ended server would keep the
    port for a minute. Listening does: of two that try at the same moment at most one succeeds. The socket listens for
    no longer than that, so no client is ever given to it. What it has set from then on is what later binds are judged
    by: not SO_REUSEADDR, so that another server's attempt fails, and SO_REUSEPORT, so that our frontends', who are of
    the same user and have it too, do not.
    """
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(target[0] != _ANY_FAMILY))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(target)
        held.listen(1)
        if sys.platform != "linux":
            # What a socket keeps by having been bound differs there; the attempt has shown that nobody listens now.
            held.close()
            return held
        held.shutdown(socket.SHUT_RDWR)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except BaseException:
        held.close()
        raise
    return held


def _is_file(descriptor: int, path: str) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)
