"""The report of a run: one JSON object, and the same as a Markdown table for the README."""

from __future__ import annotations

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
    """A row for each check; and a line for each part that did not come to its end."""
    lines = [
        f"{about['card']}, {about['date']}, torch {about['torch']}" + (" (dry run: no speed is judged)" * dry_run),
        "",
        "| part | what | seen | bound | floor | |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        lines += [_row(result.part, check) for check in result.checks]
        if result.status not in ("held", "failed"):
            lines.append(f"| {result.part} | {_cell(result.note)} | | | | {result.status} |")
    return "\n".join(lines) + "\n"


def _row(part: str, check: Check) -> str:
    bound = "" if check.limit is None else f"{check.relation} {_number(check.limit)}"
    floor = "" if check.floor is None else f"{_number(check.floor)} ({check.seen / check.floor:.0%})"
    verdict = "" if check.limit is None else "holds" if check.holds else "**does not hold**"
    if not check.is_judged and check.limit is not None:
        verdict = "not judged"
    return f"| {part} | {_cell(check.what)} | {_number(check.seen)} {check.unit} | {bound} | {floor} | {verdict} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int_or_none(value) else f"{value:.3g}"


def int_or_none(value: float) -> int | None:
    """The whole number that it is."""
    return int(value) if value == value and abs(value) != float("inf") and value == int(value) else None


def _cell(text: str) -> str:
    """On one line, and without what ends a cell."""
    return " ".join(text.split()).replace("|", "/")[:300]
