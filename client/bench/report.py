"""Report of a benchmark: one JSON object, or tables; both say where, with what and on what it was made."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from rich.table import Table

from pagewire.client.bench import environment
from pagewire.client.bench.runs import Outcome
from pagewire.client.bench.session import Session
from pagewire.client.bench.summary import Distribution, Summary
from pagewire.client.cli.printing import complain, console, write_json

LATENCIES = ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms")

Frame = dict[str, object]


def frame(args: argparse.Namespace, workload: Mapping[str, object]) -> Frame:
    """What every result begins with. Taken before the run, so that the load average is not the run's own."""
    return {
        "hardware": environment.hardware(),
        "versions": environment.versions(),
        "command": environment.command(args.arguments),
        "workload": dict(workload),
    }


async def describe_service(into: Frame, session: Session) -> None:
    """Add what the service says of itself; its model alone where AdminService is not known."""
    served: dict[str, object] = {"model": session.service.model.name, "dtype": session.service.model.dtype}
    info = await session.server_info()
    if info is not None:
        served |= {"device": info.device, "attention": info.attention_backend, "linear": info.linear_backend}
        served |= {"versions": dict(info.versions), "settings": dict(info.settings)}
    into["service"] = served


def write_outcomes(
    args: argparse.Namespace, about: Frame, found: Sequence[Outcome], more: Mapping[str, object] | None = None
) -> int:
    """Of several loads the first one's keys stand for the run, and each one's in `loads`. 1 where a request failed."""
    if args.json:
        loads = [{"load": outcome.label, **outcome.summary.as_json()} for outcome in found]
        write_json({**about, **loads[0], "loads": loads, **(more or {})})
    else:
        print_frame(about)
        console().print(outcome_table(found))
        if more:
            console().print(_pairs(more))
    for outcome in found:
        for error in outcome.summary.errors:
            complain(f"{outcome.label}: {error}")
    return 1 if any(outcome.summary.failed for outcome in found) else 0


def print_frame(about: Frame) -> None:
    """One line for each part; the service's settings are left to JSON."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in about.items():
        if isinstance(value, dict):
            plain = {key: each for key, each in value.items() if key != "settings"}
            value = ", ".join(f"{key} {_inline(each)}" for key, each in plain.items())
        table.add_row(name, str(value))
    console().print(table)


def _inline(value: object) -> str:
    match value:
        case dict():
            return " ".join(f"{key}={_inline(each)}" for key, each in value.items())
        case [dict(), *_]:
            return "\n".join(map(_inline, value))
        case _:
            return str(value)


def outcome_table(found: Sequence[Outcome]) -> Table:
    """One column a load."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for outcome in found:
        table.add_column(outcome.label, justify="right")
    summaries = [outcome.summary for outcome in found]
    rows: list[tuple[str, list[str]]] = [
        ("requests", [f"{each.requests:,}" for each in summaries]),
        ("failed", [f"{each.failed:,}" for each in summaries]),
        ("prompt tokens", [f"{each.prompt_tokens:,} ({each.cached_tokens:,} cached)" for each in summaries]),
        ("output tokens", [f"{each.output_tokens:,}" for each in summaries]),
        ("wall", [f"{each.wall_s:.2f} s" for each in summaries]),
        ("output tokens/s", [f"{each.output_tokens_per_s:,.1f}" for each in summaries]),
    ]
    rows.append(("tokens per message", [_count(each.tokens_per_message) for each in summaries]))
    rows += [
        (f"{name.removesuffix('_ms')} {percent}", [milliseconds(_of(each, name), percent) for each in summaries])
        for name in LATENCIES
        for percent in ("p50", "p90", "p99")
    ]
    rows.append(("worker idle share", [_share(each.worker_idle_share) for each in summaries]))
    if any(each.goodput_per_s is not None for each in summaries):
        rows.append(("goodput", [f"{each.goodput_per_s or 0:.2f} requests/s" for each in summaries]))
    for name, cells in rows:
        table.add_row(name, *cells)
    return table


def _of(summary: Summary, name: str) -> Distribution:
    return {
        "ttft_ms": summary.ttft_ms,
        "itl_ms": summary.itl_ms,
        "tpot_ms": summary.tpot_ms,
        "e2e_ms": summary.e2e_ms,
    }[name]


def milliseconds(found: Distribution, percent: str) -> str:
    """One percentile; a dash where there were no samples."""
    value = {"p50": found.p50, "p90": found.p90, "p99": found.p99}[percent]
    return "-" if value is None else f"{value:,.2f} ms"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def write_figures(args: argparse.Namespace, about: Frame, summary: Summary, figures: Mapping[str, object]) -> None:
    """A case's own figures; in JSON beside those of its streams."""
    if args.json:
        write_json({**about, **summary.as_json(), **figures})
    else:
        print_frame(about)
        console().print(_pairs(figures))
    for error in summary.errors:
        complain(error)


def write_pairs(args: argparse.Namespace, about: Frame, figures: Mapping[str, object]) -> None:
    """Figures without a load."""
    if args.json:
        write_json({**about, **figures})
        return
    print_frame(about)
    console().print(_pairs(figures))


def _pairs(figures: Mapping[str, object]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in figures.items():
        table.add_row(name, _inline(value))
    return table
