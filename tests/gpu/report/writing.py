"""The report of a run: one JSON object, and the same as a Markdown table for the README."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
from gpu.report.checks import ENDED_WELL, Check, PartResult

JSON_NAME, MARKDOWN_NAME = "gpu.json", "gpu.md"


def report(
    results: Sequence[PartResult], about: Mapping[str, object], dry_run: bool, seconds: float
) -> dict[str, object]:
    """Everything, and whether all of it held."""
    return {
        "held": all(result.status in ENDED_WELL for result in results) and bool(results),
        "dry_run": dry_run,
        "seconds": round(seconds, 1),
        **about,
        "parts": [msgspec.to_builtins(result) for result in results],
    }


def markdown(results: Sequence[PartResult], about: Mapping[str, object], dry_run: bool) -> str:
    """A row for each check; and one for each part that did not come to its end."""
    lines = [
        f"{about['card']}, {about['date']}, torch {about['torch']}" + (" (dry run: no speed is judged)" * dry_run),
        "",
        "| part | what | seen | bound | floor | |",
        "|---|---|---|---|---|---|",
        *rows(results),
    ]
    return "\n".join(lines) + "\n"


def rows(results: Sequence[PartResult]) -> list[str]:
    """The table's."""
    lines = []
    for result in results:
        lines += [_row(result.part, check) for check in result.checks]
        if result.status not in ("held", "failed"):
            lines.append(f"| {result.part} | {_cell(result.note)} | | | | {result.status} |")
    return lines


def _row(part: str, check: Check) -> str:
    bound = "" if check.limit is None else f"{check.relation} {_number(check.limit)}"
    floor = ""
    if check.floor is not None:
        floor = _number(check.floor) + ("" if check.seen is None else f" ({check.seen / check.floor:.0%})")
    verdict = "" if check.limit is None else "holds" if check.holds else "**does not hold**"
    if not check.is_judged and check.limit is not None:
        verdict = "not judged"
    return f"| {part} | {_cell(check.what)} | {_number(check.seen)} {check.unit} | {bound} | {floor} | {verdict} |"


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "no number"
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.3g}"


def _cell(text: str) -> str:
    """On one line, and without what ends a cell."""
    return " ".join(text.split()).replace("|", "/")[:300]
