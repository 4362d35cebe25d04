"""The cache folder: models fetched, and what was made from their files. Everything in it can be fetched or made again.

    models/<name>/     a bundled model's file and `verified.json`
    gguf/<key>/        `spec.json` and `tokenizer.json` of one GGUF file
    tokenizers/<key>/  a `tokenizer.json` put together from several files of a directory

Writers replace files atomically, and hold a file lock where the work is long. It knows no format of what it keeps.
"""

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pagewire.scheduler_svc.startup_errors import ModelError, SettingsError

_NO_HOME = Path("/nonexistent")
"""Where Debian and its kin put the home of a user who has none."""


def cache_dir_of(wanted: str | None, environ: Mapping[str, str]) -> Path:
    """The folder that was asked for, else the default. Raises SettingsError for one that depends on what is not there:
    the working directory, or somebody's home."""
    if not wanted:
        return default_cache_dir(environ)
    try:
        return Path(wanted).expanduser().absolute()
    except (OSError, RuntimeError) as error:
        raise SettingsError(f"cache_dir = {wanted!r} cannot be found: {error}") from error


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """$XDG_CACHE_HOME/pagewire, or ~/.cache/pagewire. A user without a home, as some containers have, has
    /nonexistent/.cache: whoever needs the cache is told so then."""
    base = environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "pagewire"
    home = Path(os.path.expanduser("~"))
    return (home if home.is_absolute() else _NO_HOME) / ".cache" / "pagewire"


def make_cache_folder(folder: Path) -> Path:
    """Create a folder of the cache. Raises ModelError where it cannot be written."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        homeless = " (this user has no home directory)" if folder.is_relative_to(_NO_HOME) else ""
        raise ModelError(
            f"cache folder {folder} cannot be made: {error.strerror}{homeless}; name another with --cache-dir"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ModelError(f"cache folder {folder} cannot be written; name another with --cache-dir")
    return folder


@contextmanager
def writing_cache(folder: Path) -> Iterator[None]:
    """Raise ModelError for an OSError of the block, as where the disk is full."""
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"cache folder {folder} cannot be written: {error.strerror or error}; make room, or name another folder "
            "with --cache-dir"
        ) from error


@contextmanager
def exclusive(lock_file: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold a lock that no other process holds; `on_wait` is called once where another does. The lock ends with us."""
    descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by one with this content; a reader sees the old or the new, never a part."""
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
