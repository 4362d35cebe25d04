"""The report as it grows: both files are written anew whenever a part has news, so that they are of use whatever ends
the run, and each row is printed when it is there."""

from __future__ import annotations

import datetime
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from gpu.report.checks import PartResult
from gpu.report.results import read_results
from gpu.report.writing import JSON_NAME, MARKDOWN_NAME, markdown, report, rows

from pagewire.client.bench import environment

_LOOK_S = 1.0


class LiveReport:
    """Writes from a thread of its own while it is entered, and a last time when it is left."""

    def __init__(self, results: Path, out: Path, *, dry_run: bool, seconds: Callable[[], float]) -> None:
        """`seconds` since the run began."""
        self._results = results
        self._out = out
        self._dry_run = dry_run
        self._seconds = seconds
        self._machine = {"hardware": environment.hardware(), "versions": environment.versions()}
        self._printed: set[str] = set()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="report")
        self.whole: Mapping[str, object] = {}

    def __enter__(self) -> Self:
        self._write(read_results(self._results))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join()
        self._write(read_results(self._results))

    def _run(self) -> None:
        size = -1
        while not self._left.wait(_LOOK_S):
            now = self._results.stat().st_size if self._results.exists() else 0
            if now != size:
                size = now
                self._write(read_results(self._results))

    def _write(self, results: Sequence[PartResult]) -> None:
        about = self._about(results)
        self.whole = report(results, about, self._dry_run, self._seconds())
        _replace(self._out / JSON_NAME, msgspec.json.format(msgspec.json.encode(self.whole)) + b"\n")
        _replace(self._out / MARKDOWN_NAME, markdown(results, about, self._dry_run).encode())
        for row in rows(results):
            if row not in self._printed:
                self._printed.add(row)
                print(f"{self._seconds():4.0f} s {row}", flush=True)

    def _about(self, results: Sequence[PartResult]) -> Mapping[str, object]:
        card = next((result.figures for result in results if result.part == "card"), {})
        return {
            "card": card.get("name", "unknown card"),
            "torch": card.get("torch", "unknown"),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            **self._machine,
        }


def _replace(file: Path, content: bytes) -> None:
    """At no moment is there half a file."""
    beside = file.with_name(f".{file.name}")
    beside.write_bytes(content)
    os.replace(beside, file)
