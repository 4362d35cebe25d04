"""The runtime directory: sockets between the processes, and each child's launch file.

Whoever can write to its sockets can send plans to a worker, so it belongs to this user alone (mode 0700), and that is
checked even where the user named it. A new one is made in the temporary folder and not in $XDG_RUNTIME_DIR, which is
emptied when its user logs out, while a server that was left running goes on and must start processes again. A lock file
is held for the supervisor's life: two servers never share a directory, and a later start can tell what a killed
supervisor left behind.

Cleaners of temporary files remove what looks old. systemd-tmpfiles leaves a directory alone that somebody has locked
(flock), so one is held on ours, and files are touched from time to time for other cleaners. A directory that is gone
all the same is made again with the next file.
"""

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from pagewire.scheduler_svc.settings.checks import MAX_UNIX_PATH_BYTES
from pagewire.scheduler_svc.startup_errors import SettingsError

_log = logging.getLogger(__name__)

_PREFIX = "pagewire-"
_LOCK = "lock"
_LONGEST_NAME = "frontends.sock"
_SWEEP_AFTER_S = 60.0
"""A directory younger than this may belong to a supervisor that has not locked it yet."""


class RuntimeDir:
    """A directory held for as long as this object is open. Use as a context manager; leaving it removes our files."""

    def __init__(self, path: Path, directory: int, lock: int, ours: bool) -> None:
        """`directory` and `lock` are open files."""
        self.path = path
        self._directory = directory
        self._lock = lock
        self._ours = ours

    @classmethod
    def open(cls, wanted: str | None) -> "RuntimeDir":
        """Take the directory `wanted`, created where it is missing, or make a new one. Raises SettingsError."""
        if wanted is None:
            try:
                base = Path(tempfile.gettempdir())
                _sweep(base)
                made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
            except OSError as error:
                raise SettingsError(
                    f"no runtime directory can be made in the temporary folder: {error}; name one with --runtime-dir"
                ) from error
            return cls._take_new(made)
        try:
            path = Path(wanted).expanduser().absolute()
        except (OSError, RuntimeError) as error:  # it depends on the working directory, or on somebody's home
            raise SettingsError(f"runtime_dir = {wanted!r} cannot be found: {error}") from error
        try:
            path.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            return cls._take(path, ours=False)
        except OSError as error:
            raise SettingsError(f"runtime_dir = {wanted!r} cannot be made: {error.strerror}") from error
        return cls._take_new(path)

    @classmethod
    def _take_new(cls, path: Path) -> "RuntimeDir":
        try:
            return cls._take(path, ours=True)
        except SettingsError:
            path.rmdir()
            raise

    @classmethod
    def _take(cls, path: Path, ours: bool) -> "RuntimeDir":
        longest = len(os.fsencode(path / _LONGEST_NAME))
        if longest > MAX_UNIX_PATH_BYTES:
            raise SettingsError(
                f"runtime_dir = {str(path)!r} is too long: a socket's path in it has {longest} bytes, the limit is "
                f"{MAX_UNIX_PATH_BYTES}; name a shorter one with --runtime-dir, or a shorter TMPDIR"
            )
        check_private(path)
        return cls(path, *_hold(path), ours)

    def write(self, name: str, content: bytes) -> Path:
        """Write a file that only this user can read. Raises OSError."""
        self._restore()
        path = self.path / name
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        return path

    def _restore(self) -> None:
        """Make the directory again where it is gone. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(self.path.lstat(), os.fstat(self._directory)):
                return
        _log.error(
            "the runtime directory %s was removed, perhaps by a cleaner of temporary files, and is made again; "
            "--runtime-dir names another place",
            self.path,
        )
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            check_private(self.path)
            held = _hold(self.path)
        except SettingsError as error:  # somebody else's is there now
            raise OSError(errno.EEXIST, str(error)) from error
        os.close(self._directory)
        os.close(self._lock)
        self._directory, self._lock = held

    def missing(self, names: Sequence[str]) -> list[str]:
        """Which of these files are not there."""
        return [name for name in names if not os.path.exists(self.path / name)]

    def refresh(self) -> None:
        """Make all look used, for cleaners that go by age. Every few hours is often enough."""
        with contextlib.suppress(OSError):  # gone; the next `write` says so
            for path in (self.path, *self.path.iterdir()):
                os.utime(path)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the directory where we made it, else what we put into it; then let the lock go."""
        if self._ours:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            with contextlib.suppress(FileNotFoundError):
                for file in self.path.iterdir():
                    if file.suffix in (".sock", ".json", ".store") or file.name == _LOCK:
                        file.unlink(missing_ok=True)
        os.close(self._lock)
        os.close(self._directory)

    def __enter__(self) -> "RuntimeDir":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _hold(path: Path) -> tuple[int, int]:
    """Opens the directory and its lock file, and locks both. Raises SettingsError."""
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            os.close(directory)
            raise
    except OSError as error:
        raise SettingsError(f"runtime_dir = {str(path)!r} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        os.close(directory)
        raise SettingsError(f"runtime_dir = {str(path)!r} is in use by another server") from None
    try:
        # Shared: it keeps cleaners away and nobody else. Never waited for: whoever has it need not let go.
        fcntl.flock(directory, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:  # a file system without such locks, too
        _log.warning(
            "the runtime directory %s cannot be locked against cleaners of temporary files: %s", path, error.strerror
        )
    return directory, lock


def check_private(path: Path) -> None:
    """Raise SettingsError unless `path` is a directory of this user that nobody else can enter."""
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise SettingsError(f"{str(path)!r} must be a directory, and not a link to one")
    if found.st_uid != os.geteuid():
        raise SettingsError(f"{str(path)!r} belongs to user {found.st_uid}; it must belong to user {os.geteuid()}")
    if found.st_mode & 0o077:
        raise SettingsError(f"{str(path)!r} has mode {stat.S_IMODE(found.st_mode):04o}; it must be 0700")


def _sweep(base: Path) -> None:
    """Remove the directories of supervisors that were killed: theirs is a lock that nobody holds."""
    for path in base.glob(f"{_PREFIX}*"):
        try:
            if time.time() - path.lstat().st_mtime < _SWEEP_AFTER_S:
                continue
            check_private(path)
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (OSError, SettingsError):
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)
