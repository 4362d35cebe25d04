"""How the command prints: for a person at a terminal, or for a script."""

from __future__ import annotations

import json
import re
import sys

from rich.console import Console

_PIPE_WIDTH = 160
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def complain(message: str) -> None:
    """One line on stderr."""
    print(f"pagewire: {' '.join(message.split())}", file=sys.stderr, flush=True)


def write(text: str) -> None:
    """A model's text, at once. A terminal gets no control characters: a model can be made to write any."""
    sys.stdout.write(_UNSAFE.sub("", text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def write_json(value: object) -> None:
    """One line of JSON."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def console() -> Console:
    """For tables on stdout; colors only on a terminal, whose width holds; elsewhere wide enough for most lines."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def note(text: str) -> None:
    """A remark beside the result, only where a person watches."""
    if sys.stderr.isatty():
        Console(stderr=True, highlight=False).print(text, style="dim", markup=False)


def size(num_bytes: object) -> str:
    """Bytes in words; empty for none."""
    if not isinstance(num_bytes, int):
        return ""
    return f"{num_bytes / 1e6:,.0f} MB" if num_bytes < 10e9 else f"{num_bytes / 1e9:,.0f} GB"
