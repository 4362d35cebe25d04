"""The cache folder: models fetched, and what was made from GGUF files. Everything in it can be fetched or made again.

    models/<name>/     a carried model's file and `verified.json`
    gguf/<key>/        `spec.json` and `tokenizer.json` of one GGUF file

Writers replace files atomically, and hold a file lock where the work is long. It knows no format of what it keeps.
"""

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pagewire.scheduler_svc.startup_errors import ModelError


def cache_dir_of(wanted: str | None, environ: Mapping[str, str]) -> Path:
    """The folder that was asked for, else the default."""
    return Path(wanted).expanduser().absolute() if wanted else default_cache_dir(environ)


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """$XDG_CACHE_HOME/pagewire, or ~/.cache/pagewire."""
    base = environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "pagewire"


def make_cache_folder(folder: Path) -> Path:
    """Create a folder of the cache. Raises ModelError where it cannot be written."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"cache folder {folder} cannot be made: {error.strerror}; name another with --cache-dir"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ModelError(f"cache folder {folder} cannot be written; name another with --cache-dir")
    return folder


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
