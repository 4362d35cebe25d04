"""The comparison's report: as an object for scripts, and as tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.comparison import OURS, Case, Run, median_rate
from rich.table import Table

from pagewire.client.cli.printing import console


def case_report(case: Case, found: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """One case's medians and rounds by side, and what ours are to theirs."""
    rates = {side: median_rate(side_runs) for side, side_runs in found.items()}
    return {
        "requests": len(case.prompts),
        "prompt_tokens": case.prompt_tokens,
        "output_tokens": case.output_tokens,
        "sides": {
            side: {
                "output_tokens_per_s": round(rates[side], 2),
                "wall_s": round(statistics.median(run.wall_s for run in side_runs), 4),
                "rounds_tokens_per_s": [round(run.tokens_per_s, 2) for run in side_runs],
            }
            for side, side_runs in found.items()
        },
        "ratios": {side: round(rates[OURS] / rate, 3) for side, rate in rates.items() if side != OURS},
    }


def print_report(report: Mapping[str, Any]) -> None:
    """For people."""
    out = console()
    for name in ("hardware", "versions", "command", "workload", "vllm"):
        if name in report:
            value = report[name]
            out.print(f"[bold]{name}[/bold] {_inline(value) if isinstance(value, dict) else value}")
    out.print(_rates(report["cases"]))
    out.print(_others(report["start_s"], report["peak_memory_bytes"]))
    out.print(_bounds(report["bounds"]))


def _rates(cases: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("case", "side", "output tokens/s", "wall", "rounds, tokens/s", "pagewire / side"):
        table.add_column(column, justify="left" if column in ("case", "side") else "right")
    for name, case in cases.items():
        for side, figures in case["sides"].items():
            ratio = case["ratios"].get(side)
            table.add_row(
                name,
                side,
                f"{figures['output_tokens_per_s']:.1f}",
                f"{figures['wall_s']:.2f} s",
                " ".join(f"{rate:.1f}" for rate in figures["rounds_tokens_per_s"]),
                "" if ratio is None else f"{ratio:.2f} x",
            )
    return table


def _others(starts_s: Mapping[str, Sequence[float]], memory: Mapping[str, Mapping[str, int]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("side", "process to first token", "peak memory, largest process", "all", "weights", "KV cache"):
        table.add_column(column, justify="left" if column == "side" else "right")
    for side, starts in starts_s.items():
        sizes = (memory[side].get(name) for name in ("largest", "total", "weights", "kv_cache"))
        cells = ("" if size is None else f"{size / 1e6:,.0f} MB" for size in sizes)
        table.add_row(side, f"{statistics.median(starts):.1f} s", *cells)
    return table


def _bounds(bounds: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("bound", "seen", "demand", ""):
        table.add_column(column, justify="left" if column in ("bound", "") else "right")
    for bound in bounds:
        demand = f"{bound['relation']} {bound['limit']:,.2f} {bound['unit']}"
        table.add_row(bound["what"], f"{bound['seen']:,.2f}", demand, "holds" if bound["met"] else "does not hold")
    return table


def _inline(value: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} ({_inline(each)})" if isinstance(each, dict) else f"{name} {each}" for name, each in value.items()
    )
