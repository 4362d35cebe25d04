"""Followed files: files that are read at the start, and again when they change.

A change is seen by what `stat` says, so that a look costs next to nothing, and is read on a thread, because a disk may
take its time. What was read and found right is handed on; what cannot be read or is wrong is logged, once for each
complaint, looked at again, and changes nothing: so is what changed while it was read, which may be half of something.
What is in the files it does not know.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence

from pagewire.scheduler_svc.startup_errors import StartupError

_log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 2.0

_Stamp = tuple[tuple[int, ...] | None, ...]


class UnsettledError(StartupError):
    """Files changed while they were read."""


class FollowedFiles:
    """Files that mean something together, such as a certificate and its key."""

    def __init__(self, what: str, paths: Sequence[str], read: Callable[[], Callable[[], None]]) -> None:
        """Reads them. `read` runs on a thread later, and returns what puts that in force on the event loop; it raises
        StartupError or OSError where they cannot be used, which here is let through."""
        self._what = what
        self._paths = paths
        self._read = read
        self._looking = asyncio.Lock()
        self._complaint = ""
        self._stamp: _Stamp = ()
        self._read_settled()()

    async def follow(self) -> None:
        """Look every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            await self.look()

    async def look(self, *, ordered: bool = False) -> None:
        """Read again what has changed, or all of it where that is `ordered`."""
        async with self._looking:
            try:
                use = await asyncio.to_thread(self._read_changed, ordered)
            except (StartupError, OSError) as error:
                if ordered or str(error) != self._complaint:
                    _log.error("the new %s cannot be used, and the old stay in force: %s", self._what, error)
                self._complaint = str(error)
                return
            if use is not None:
                self._complaint = ""
                use()
                _log.info("%s were read again", self._what)

    def _read_changed(self, ordered: bool) -> Callable[[], None] | None:
        if not ordered and not self._complaint and self._stamp_now() == self._stamp:
            return None
        return self._read_settled()

    def _read_settled(self) -> Callable[[], None]:
        stamp = self._stamp_now()
        use = self._read()
        if self._stamp_now() != stamp:
            raise UnsettledError(f"{', '.join(self._paths)} changed while read")
        self._stamp = stamp
        return use

    def _stamp_now(self) -> _Stamp:
        return tuple(map(_stamp_of, self._paths))


def _stamp_of(path: str) -> tuple[int, ...] | None:
    """Of what the path leads to, links followed: Kubernetes changes a secret's files by changing a link."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
