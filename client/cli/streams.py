"""Standard streams of the command, whatever it was started with: closed, full, without a reader, not UTF-8.

Inside `standard_streams` all three can be used. What stdout does not take raises `StdoutLost`, whoever writes it; a
character that its encoding lacks is replaced. Input that is no text comes as surrogates, which are refused where they
would be sent. It knows nothing of what is read or written.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


class StdoutLost(Exception):
    """Stdout takes no more; says why."""


class ReaderGone(StdoutLost):
    """Whoever read stdout has gone."""


class _Stdout(io.TextIOWrapper):
    """Text on stdout. Its errors are no OSError, because argparse says nothing of those and rich exits over some."""

    def write(self, text: str, /) -> int:
        with _losing_stdout():
            return super().write(text)

    def flush(self) -> None:
        with _losing_stdout():
            super().flush()


@contextmanager
def standard_streams() -> Iterator[None]:
    """Make all three usable for the block. A stderr that is closed is stdout: the command says it on what is open."""
    given = sys.stdin, sys.stdout, sys.stderr
    _fill_closed_descriptors()
    sys.stdin = _input(sys.stdin)
    output = _output(sys.stdout)
    sys.stdout = output or sys.stdout
    sys.stderr = sys.stderr or sys.stdout
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = given
        if output is not None:
            with suppress(StdoutLost):
                output.detach()


def forget_stdout() -> None:
    """After StdoutLost: what is buffered can go nowhere, and the interpreter would complain about it at its end."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def is_unicode(stream: TextIO) -> bool:
    """Whether every character can be written to it."""
    return stream.encoding is None or codecs.lookup(stream.encoding).name.startswith("utf")


@contextmanager
def _losing_stdout() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGone("its reader has gone") from error
    except OSError as error:
        raise StdoutLost(error.strerror or str(error)) from error


def _fill_closed_descriptors() -> None:
    """The next file or socket would get a closed stream's number, and then what libraries and children write there."""
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None:
            try:
                os.fstat(number)
            except OSError:
                null = os.open(os.devnull, os.O_RDWR)
                os.dup2(null, number)
                os.set_inheritable(number, True)
                if null != number:
                    os.close(null)


def _input(stream: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        ascii_alone = codecs.lookup(stream.encoding).name == "ascii"  # of which UTF-8 is an extension
        stream.reconfigure(encoding="utf-8" if ascii_alone else None, errors="surrogateescape")
    return stream


def _output(stream: TextIO | None) -> _Stdout | None:
    """None for a stream that is no file's."""
    if stream is None:
        unwritable = io.FileIO(os.open(os.devnull, os.O_RDONLY), "w")  # as a closed one is: EBADF
        return _Stdout(unwritable, encoding="utf-8", write_through=True)
    if not isinstance(stream, io.TextIOWrapper):
        return None
    stream.flush()
    return _Stdout(
        stream.buffer,
        encoding=stream.encoding,
        errors="replace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
