"""Results of parts on their way between processes: a file, a JSON object a line, and a new line for a part whenever it
has found something more. Its last one counts, so what it has found is known whatever ends it.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from gpu.report.checks import Check, PartResult, Skipped, result_of

_decoder = msgspec.json.Decoder(PartResult)


def append_result(file: Path, result: PartResult) -> None:
    """A whole line at once, behind what other processes append meanwhile."""
    with file.open("ab", buffering=0) as lines:
        lines.write(msgspec.json.encode(result) + b"\n")


def read_results(file: Path) -> list[PartResult]:
    """The last of each part, in the order in which parts began; none where there is no file yet. What a process that
    was ended left unfinished is no result."""
    if not file.exists():
        return []
    lines = [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return list({result.part: result for result in map(_decoder.decode, lines)}.values())


class PartRecord:
    """What one part finds: whatever is added is in the file at once."""

    def __init__(self, file: Path, part: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self._file = file
        self._part = part
        self._clock = clock
        self._begin_s = clock()
        self._checks: list[Check] = []
        self._figures: dict[str, object] = {}
        self._failures: list[str] = []
        self._append(PartResult(part=part, status="running"))

    def add(self, *checks: Check, **figures: object) -> None:
        """A figure of the same name is replaced."""
        self._checks += checks
        self._figures |= figures
        self._append(msgspec.structs.replace(self._result(), status="running"))

    @contextmanager
    def attempt(self, what: str = "") -> Iterator[None]:
        """A piece of the part, or (without a name) all of it, whose failure is written down; what follows goes on."""
        try:
            yield
        except Skipped:
            raise
        except Exception as error:
            traceback.print_exc()
            self._failures.append(f"{what}{': ' * bool(what)}{type(error).__name__}: {error}")
            self.add()

    def so_far(self) -> PartResult:
        """What it has found."""
        return self._result()

    def end(self, skipped: str = "") -> None:
        """Nothing more comes. `skipped` is the reason where the machine lacks what the part is about."""
        self._append(
            msgspec.structs.replace(self._result(), status="skipped", note=skipped) if skipped else self._result()
        )

    def _result(self) -> PartResult:
        result = result_of(self._part, self._clock() - self._begin_s, self._checks, self._figures)
        if self._failures:
            result = msgspec.structs.replace(result, status="error", note="; ".join(self._failures))
        return result

    def _append(self, result: PartResult) -> None:
        append_result(self._file, result)
