"""`pagewire bench`: measures a service, or the engine alone. One module per measurement."""

from __future__ import annotations

import argparse

from pagewire.client.cli.bench import control_plane, engine, serve, throughput


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The measurements."""
    parser = commands.add_parser(
        "bench", help="measure a service", description="Measure a service, or the engine alone."
    )
    measurements = parser.add_subparsers(metavar="MEASUREMENT", required=True)
    for module in (throughput, serve, engine, control_plane):
        module.add_parser(measurements)
