"""Results of parts on their way between processes: a file, a JSON object a line."""

from __future__ import annotations

from pathlib import Path

import msgspec
from gpu.report.checks import PartResult

_decoder = msgspec.json.Decoder(PartResult)


def append_result(file: Path, result: PartResult) -> None:
    """A whole line at once, behind what other processes append meanwhile."""
    with file.open("ab", buffering=0) as lines:
        lines.write(msgspec.json.encode(result) + b"\n")


def read_results(file: Path) -> list[PartResult]:
    """In the order they came; none where there is no file yet. What a process that was ended left unfinished is no
    result."""
    if not file.exists():
        return []
    return [_decoder.decode(line) for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
