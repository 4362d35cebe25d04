"""`pagewire models`: what the service serves, and what `--model` can name on this machine."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from rich.table import Table

from pagewire.client import installed
from pagewire.client.cli import connection
from pagewire.client.cli.printing import complain, console, size, write_json
from pagewire.client.errors import Unavailable
from pagewire.client.retry import NO_RETRY
from pagewire.client.types import Model


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command and its flags."""
    parser = commands.add_parser(
        "models",
        help="the models served, and those that can be",
        description="List the models that the service serves, and those that `serve --model` can name on this machine.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    connection.add_target_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0; 1 when there is neither a service nor a part that knows models."""
    served: list[Model] | None = None
    why_not = ""
    with connection.client(args, NO_RETRY) as client:
        try:
            served = client.models()
        except Unavailable as error:
            why_not = str(error if error.reason else connection.unreachable(args.target, error))
    known = installed.known_models()
    if args.json:
        write_json(
            {
                "target": args.target,
                "served": None if served is None else [asdict(model) for model in served],
                "served_error": why_not,
                "known": None if isinstance(known, installed.Absent) else known["models"],
                "known_error": known.reason if isinstance(known, installed.Absent) else "",
            }
        )
    else:
        out = console()
        if served is None:
            complain(why_not)
        else:
            out.print(_served_table(args.target, served))
        if isinstance(known, installed.Absent):
            complain(f"what this machine could serve is not known: {known.reason}")
        else:
            out.print(known_table(known["models"]))
    return 1 if served is None and isinstance(known, installed.Absent) else 0


def _served_table(target: str, models: list[Model]) -> Table:
    table = Table(title=f"served at {target}", title_justify="left", box=None, pad_edge=False)
    for heading in ("name", "architecture", "weights", "context", "takes"):
        table.add_column(heading)
    for model in models:
        takes = ["token ids"]
        takes += ["text"] if model.capabilities.text else []
        takes += ["chat"] if model.capabilities.chat else []
        takes += ["tools"] if model.capabilities.tool_calls else []
        table.add_row(
            model.name, model.architecture, model.dtype, f"{model.limits.max_model_len:,} tokens", ", ".join(takes)
        )
    return table


def known_table(models: list[dict[str, object]]) -> Table:
    """What `--model` can name, besides any directory, .gguf file or hub id."""
    table = Table(title="on this machine", title_justify="left", box=None, pad_edge=False)
    for heading in ("--model", "here", "size", "note"):
        table.add_column(heading, justify="right" if heading == "size" else "left")
    for model in models:
        here = "" if model["source"] == "random" else "yes" if model["cached"] else "to fetch"
        table.add_row(str(model["name"]), here, size(model["size_bytes"]), str(model["note"]))
    return table
