"""A batch's file: what became of its prompts, one JSON object a line, in the order in which they ended.

Every line stands on its own from the moment it is written, so a batch that was interrupted can go on: lines are known
by the prompt's index and by a digest of its request. It knows nothing of how prompts are answered.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from pagewire.client.errors import InvalidRequest, PagewireError
from pagewire.client.json_text import NotJson, from_json


class NotWritten(PagewireError):
    """The file takes no more."""


class BatchFile:
    """Open for as long as a `with` lasts, for nobody else meanwhile."""

    def __init__(self, path: Path, requests: Sequence[str], *, resumes: bool) -> None:
        """`requests`: of each prompt, what its request is known by. Raises InvalidRequest for a file that is there
        already, or with `resumes` for one that is not of these requests or that somebody else writes; OSError."""
        self._path = path
        self._requests = requests
        self.answered: set[int] = set()
        """Indices of prompts whose answers were in the file before."""
        try:
            is_there = path.exists()
            if is_there and not path.is_file():
                raise InvalidRequest(f"--output {str(path)!r} is no file: its lines must be there to go on from")
            self._file: IO[bytes] = open(path, "r+b" if resumes and is_there else "xb")  # noqa: SIM115  # __exit__
        except FileExistsError as error:
            raise InvalidRequest(f"--output {str(path)!r} is there already; --resume goes on with it") from error
        except OSError as error:
            raise InvalidRequest(f"--output {str(path)!r} cannot be written: {error.strerror}") from error
        try:
            self._lock(self._file)
            if resumes and is_there:
                self._resume()
        except BaseException:
            self._file.close()
            raise

    def write(self, index: int, what: dict[str, object]) -> None:
        """Add what became of one prompt. Raises NotWritten."""
        try:
            self._file.write(_line({"index": index, "request": self._requests[index], **what}))
            self._file.flush()
        except OSError as error:
            raise NotWritten(f"--output {str(self._path)!r} cannot be written: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what is left of a line that could not be written
            self._file.close()

    def _lock(self, file: IO[bytes]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InvalidRequest(f"--output {str(self._path)!r} is being written by another process") from error

    def _resume(self) -> None:
        """Keep the answers. A line that broke off is dropped, and so are failures, whose prompts are asked again."""
        kept = []
        lines = self._file.read().split(b"\n")
        for number, line in enumerate(lines, 1):
            if number == len(lines):
                break  # without its end: nothing, or all that was written of it
            entry = read_entry(line, self._requests, f"--output {str(self._path)!r}, line {number}")
            if "error" not in entry and entry["index"] not in self.answered:
                self.answered.add(entry["index"])
                kept.append(line + b"\n")
        whole = self._path.resolve()  # what a link stands for, not the link
        replacement = whole.with_name(f"{whole.name}.{os.getpid()}")
        try:
            new: IO[bytes] = open(replacement, "xb")  # noqa: SIM115  # becomes the file
            try:
                self._lock(new)
                os.fchmod(new.fileno(), os.fstat(self._file.fileno()).st_mode & 0o7777)
                new.writelines(kept)
                new.flush()
                replacement.replace(whole)
            except BaseException:
                new.close()
                raise
        finally:
            with suppress(FileNotFoundError):
                replacement.unlink()
        self._file.close()
        self._file = new


def read_entry(line: bytes, requests: Sequence[str], where: str) -> dict[str, Any]:
    """A line of such a file. Raises InvalidRequest, which says `where`, for what is none, or not of these requests."""
    try:
        entry = from_json(line)
    except NotJson as error:
        raise InvalidRequest(f"{where}: not JSON: {error}") from error
    match entry:
        case {"index": int(index), "request": str(request)} if type(index) is int:
            if not 0 <= index < len(requests) or requests[index] != request:
                raise InvalidRequest(
                    f"{where}: prompt {index + 1} was asked otherwise; only the same prompts, flags and model go on"
                )
            return dict(entry)
        case _:
            raise InvalidRequest(f"{where} is none of a batch")


def _line(entry: dict[str, object]) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode(errors="replace") + b"\n"
