"""`pagewire bench throughput`: the nano-vllm workload, all requests at once, through gRPC."""

from __future__ import annotations

import argparse
import asyncio

from pagewire.client.bench import flags, plot, report, runs
from pagewire.client.bench.runs import Outcome
from pagewire.client.bench.session import Service, Session
from pagewire.client.bench.workload import NANO_VLLM_MAX_ID, nano_vllm
from pagewire.client.errors import InvalidRequest
from pagewire.client.local import DEFAULT_MODEL

_NUM_SEQS = 256


def add_parser(measurements: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command and its flags."""
    parser = measurements.add_parser(
        "throughput",
        help="the nano-vllm workload, all requests at once",
        description="Tokens a second of the nano-vllm workload, all requests sent at once.",
    )
    flags.add_result_flags(parser)
    parser.add_argument("--num-seqs", type=flags.count, default=_NUM_SEQS, metavar="N", help=f"requests ({_NUM_SEQS})")
    flags.add_length_flags(parser)
    flags.add_load_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """1 where a request failed."""
    if args.plot:
        plot.check()
    about = report.frame(
        args,
        {
            "kind": "nano-vllm",
            "num_seqs": args.num_seqs,
            "input_len": str(args.input_len),
            "output_len": str(args.output_len),
            "seed": args.seed,
            "temperature": args.temperature,
            "max_id": NANO_VLLM_MAX_ID if args.max_id is None else args.max_id,
            "ignore_eos": True,
        },
    )
    with flags.service(args, DEFAULT_MODEL, {"max_queued": max(1024, args.num_seqs)}) as found:
        outcome = asyncio.run(_measure(args, found, about))
    if args.plot:
        plot.outcomes(args.plot, str(about["command"]), [outcome])
    return report.write_outcomes(args, about, [outcome])


async def _measure(args: argparse.Namespace, found: Service, about: report.Frame) -> Outcome:
    settings = flags.run_settings(args, found)
    if args.max_id is None and settings.max_id < NANO_VLLM_MAX_ID:
        raise InvalidRequest(
            f"the workload's ids reach {NANO_VLLM_MAX_ID} and the model's {settings.max_id}: choose --max-id"
        )
    jobs = nano_vllm(args.num_seqs, args.input_len, args.output_len, args.seed, settings.max_id)
    async with Session(found) as session:
        await report.describe_service(about, session)
        return await runs.throughput(session, jobs, settings)
