"""`pagewire bench engine`: what the scheduler costs per step, in a process without sockets."""

from __future__ import annotations

import argparse

from pagewire.client.bench import engine
from pagewire.client.cli.bench import flags, report

_RUNNING = 256
_STEPS = 2000
_WARM_UP_STEPS = 1000
_BLOCK_SIZE = 32


def add_parser(measurements: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The flags."""
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
    report.write_pairs(args, about, engine.measure(workload))
    return 0
