"""Printing: for a person at a terminal, or for a script."""

from __future__ import annotations

import json
import re
import sys
from contextlib import suppress

from rich.console import Console

from pagewire.client.cli.streams import StdoutLost, is_unicode

_PIPE_WIDTH = 160
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def say(text: str) -> None:
    """Print on stderr, or on stdout where stderr does not take it."""
    for stream in (sys.stderr, sys.stdout):
        with suppress(OSError, StdoutLost):
            print(text, file=stream, end="", flush=True)
            return


def complain(message: str) -> None:
    """One line, as `say` prints it."""
    say(f"pagewire: {' '.join(message.split())}\n")


def write(text: str) -> None:
    """A model's text, at once. A terminal gets no control characters: a model can be made to write any."""
    sys.stdout.write(clean(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def write_dim(text: str) -> bool:
    """The same, dimmed, to a terminal; nothing elsewhere. Whether it was written."""
    if not sys.stdout.isatty():
        return False
    sys.stdout.write(f"\x1b[2m{clean(text)}\x1b[0m")
    sys.stdout.flush()
    return True


def clean(text: str) -> str:
    """Without control characters."""
    return _UNSAFE.sub("", text)


def write_json(value: object) -> None:
    """One line of JSON. A character that stdout's encoding may lack is escaped, and nothing is lost."""
    print(json.dumps(value, ensure_ascii=not is_unicode(sys.stdout)), flush=True)


def console() -> Console:
    """For tables on stdout; colors only on a terminal, whose width holds; elsewhere wide enough for most lines."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def note(text: str) -> None:
    """A remark beside the result, only where a person watches."""
    if sys.stderr.isatty():
        with suppress(OSError, StdoutLost):  # a terminal that was hung up
            Console(stderr=True, highlight=False).print(text, style="dim", markup=False)


def size(num_bytes: object) -> str:
    """Bytes in words; empty for none."""
    if not isinstance(num_bytes, int):
        return ""
    return f"{num_bytes / 1e6:,.0f} MB" if num_bytes < 10e9 else f"{num_bytes / 1e9:,.0f} GB"
