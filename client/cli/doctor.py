"""`pagewire doctor`: what this machine has, what is missing, and how to get it."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from pagewire.client import installed
from pagewire.client.cli import connection
from pagewire.client.cli.models import known_table
from pagewire.client.cli.printing import console, size, write_json
from pagewire.client.errors import PagewireError, Unavailable
from pagewire.client.retry import NO_RETRY
from pagewire.client.types import HealthStatus

_EXTRAS = {"": "client", "scheduler": "scheduler", "worker": "worker"}
_SERVICE_TIMEOUT_S = 5.0

Report = Mapping[str, Any]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command and its flags."""
    parser = commands.add_parser(
        "doctor",
        help="what this machine has and lacks",
        description="Say what this machine has to run a service, what is missing, and how to get it.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    connection.add_target_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Always 0: what is missing is the answer, not a failure."""
    report = examine(args)
    if args.json:
        write_json(report)
    else:
        _print(report)
    return 0


def examine(args: argparse.Namespace) -> Report:
    """Everything, as JSON has it. Takes as long as importing torch does."""
    probe = installed.worker_probe()
    known = installed.known_models()
    auto = installed.auto_device()
    service = _service(args)
    extras = {name: dict(installed.requirements(extra)) for extra, name in _EXTRAS.items()}
    return {
        "pagewire": installed.version(installed.DISTRIBUTION),
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "packages": extras,
        "worker": None if isinstance(probe, installed.Absent) else probe,
        "worker_error": probe.reason if isinstance(probe, installed.Absent) else "",
        "auto_device": None if isinstance(auto, installed.Absent) else auto,
        "models": None if isinstance(known, installed.Absent) else known,
        "models_error": known.reason if isinstance(known, installed.Absent) else "",
        "service": service,
        "can_serve": not installed.missing("scheduler")
        and not isinstance(probe, installed.Absent)
        and bool(probe["torch"]),
        "advice": list(_advice(probe, known, service)),
    }


def _service(args: argparse.Namespace) -> dict[str, str]:
    with connection.client(args, NO_RETRY) as client:
        try:
            status = client.health(timeout_s=_SERVICE_TIMEOUT_S)
            served = client.models(timeout_s=_SERVICE_TIMEOUT_S) if status is HealthStatus.SERVING else []
        except PagewireError as error:
            said = connection.unreachable(args.target, error) if isinstance(error, Unavailable) else error
            return {"target": args.target, "status": "", "model": "", "error": str(said)}
    return {
        "target": args.target,
        "status": status.value,
        "model": ", ".join(model.name for model in served),
        "error": "",
    }


def _advice(
    probe: Report | installed.Absent, known: Report | installed.Absent, service: Mapping[str, str]
) -> Iterator[str]:
    if isinstance(known, installed.Absent):
        yield f"to serve, or to name models: {known.reason}"
    if isinstance(probe, installed.Absent):
        yield f"to run a model: {probe.reason}"
    else:
        for lack in probe["missing"]:
            yield f"{lack['what']} ({lack['consequence']}): {lack['install']}"
    if not service["status"] and not isinstance(known, installed.Absent):
        yield f"no service answers at {service['target']}: start one with `pagewire serve`"


def _print(report: Report) -> None:
    out = console()
    table = _table("this machine")
    table.add_row("pagewire", report["pagewire"] or "not installed, run from a source tree")
    table.add_row("python", f"{report['python']}, {report['executable']}")
    table.add_row("system", f"{report['system']}, {report['cores']} cores")
    for name, packages in report["packages"].items():
        table.add_row(name, ", ".join(f"{each} {version or 'MISSING'}" for each, version in packages.items()))
    out.print(table)
    out.print(_worker_table(report))
    if report["models"] is not None:
        out.print(f"\nmodel cache: {report['models']['cache_dir']}", markup=False)
        out.print(known_table(report["models"]["models"]))
    service = report["service"]
    table = _table("service")
    table.add_row("target", service["target"])
    table.add_row("state", service["status"] or service["error"])
    if service["model"]:
        table.add_row("model", service["model"])
    out.print(table)
    advice = _table("what to do")
    for line in report["advice"] or ["nothing: this machine is ready"]:
        advice.add_row("-", line)
    out.print(advice)


def _worker_table(report: Report) -> Table:
    table = _table("worker")
    worker = report["worker"]
    if worker is None:
        table.add_row("not available", report["worker_error"])
        return table
    torch = worker["torch"]
    if torch is not None:
        table.add_row("torch", f"{torch['version']}, {torch['num_threads']} threads, {torch['cpu_capability']}")
    table.add_row("cores", f"{worker['usable_cores']} usable; {', '.join(worker['instruction_sets'])}")
    for device in worker["devices"]:
        state = "usable" if device["usable"] else "not usable"
        parts_of = [device["name"], size(device["memory_bytes"]), state, device["note"]]
        table.add_row(f"device {device['device']}", ", ".join(part for part in parts_of if part))
    if report["auto_device"] is not None:
        table.add_row("device auto", "{device}: {reason}".format_map(report["auto_device"]))
    for kind in ("attention", "linear"):
        for backend in worker[f"{kind}_backends"]:
            state = "in use" if backend["chosen"] else "available" if backend["available"] else "not available"
            note = ", ".join(part for part in (state, backend["note"]) if part)
            table.add_row(f"{kind} on {backend['device']}", f"{backend['name']}: {note}")
    return table


def _table(title: str) -> Table:
    table = Table(title=f"\n{title}", title_justify="left", box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table
