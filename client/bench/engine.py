"""`pagewire bench engine`: what the scheduler costs per step, measured in a process of its own without sockets.

That process has the service's libraries; this one has the client's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping

from pagewire.client import installed
from pagewire.client.bench import flags, report
from pagewire.client.errors import InvalidRequest, LaunchError
from pagewire.client.json_text import NotJson, from_json

_MODULE = "pagewire.scheduler_svc.engine.bench"
_WRONG_WORKLOAD = 2
"""Its exit status for a workload that it cannot run."""

_RUNNING = 256
_STEPS = 2000
_WARM_UP_STEPS = 1000
_BLOCK_SIZE = 32


def add_parser(measurements: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command and its flags."""
    parser = measurements.add_parser(
        "engine",
        help="what the scheduler costs per step, in process",
        description="What plan, encode, decode-result and apply cost per step, with sequences that arrive and end.",
    )
    flags.add_result_flags(parser, plots=False)
    flags.add_length_flags(parser)
    for name, default, what in (
        ("--running", _RUNNING, "sequences that run at once"),
        ("--steps", _STEPS, "steps measured"),
        ("--block-size", _BLOCK_SIZE, "tokens in a KV block"),
    ):
        parser.add_argument(name, type=flags.count, default=default, metavar="N", help=f"{what} ({default})")
    parser.add_argument(
        "--warm-up-steps",
        type=flags.count_or_none,
        default=_WARM_UP_STEPS,
        metavar="N",
        help=f"steps before them ({_WARM_UP_STEPS})",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Always 0; what fails raises."""
    workload: dict[str, object] = {
        "running": args.running,
        "steps": args.steps,
        "warm_up_steps": args.warm_up_steps,
        "input_len": [args.input_len.low, args.input_len.high],
        "output_len": [args.output_len.low, args.output_len.high],
        "block_size": args.block_size,
        "seed": args.seed,
    }
    about = report.frame(args, workload)
    report.write_pairs(args, about, _measure(workload))
    return 0


def _measure(workload: Mapping[str, object]) -> dict[str, object]:
    """Microseconds and bytes, by name. Raises LaunchError where the scheduler is not installed or fails."""
    if gone := installed.missing("scheduler"):
        raise LaunchError(f"bench engine needs {', '.join(gone)}: pip install 'pagewire[scheduler]'")
    answer = subprocess.run(
        [sys.executable, "-P", "-m", _MODULE, "--workload", json.dumps(workload)],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    last_words = (answer.stderr.strip().splitlines() or [""])[-1]
    if answer.returncode == _WRONG_WORKLOAD:
        raise InvalidRequest(last_words.partition(": ")[2])
    if answer.returncode != 0:
        raise LaunchError(f"the engine's measurement ended with status {answer.returncode}: {last_words}")
    try:
        measured: dict[str, object] = from_json(answer.stdout)
    except NotJson as error:
        raise LaunchError(
            f"the engine's measurement said {answer.stdout[:100]!r}, which is no JSON: {error}"
        ) from error
    return measured
