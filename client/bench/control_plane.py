"""`pagewire bench control-plane`: what the service itself carries, with no model behind it.

It spawns a service on the `sim` device, which answers every step at once: what is left is the engine, the road between
the processes, the frontend, gRPC and this client, all on this machine. That service is at its limit, where latency says
only how much waits; so the latency that the service adds is measured on a second one, whose steps take as long as a
model's may. There

    added itl  = time between two messages of a stream, among all streams        -  one step
    added ttft = time to the first token of one more request beside the streams  -  its own step

and for comparison the added ttft of a request on the idle service. Beside streams it holds what the steps in flight
still take when the request comes: with two plans in flight between one and two steps, a step and a half at the median.
"""

from __future__ import annotations

import argparse
import asyncio

from pagewire.client.bench import flags, plot, report, runs
from pagewire.client.bench.runs import Outcome
from pagewire.client.bench.session import Service, Session
from pagewire.client.bench.summary import distribution
from pagewire.client.bench.workload import Span
from pagewire.client.errors import InvalidRequest
from pagewire.client.local import Setting

_MODEL = "random:qwen3-0.6b"
_INPUT_LEN = 32
_RAMP_S = 2.0
_STEP_US = 20_000
_PROBES = 20


def add_parser(measurements: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command and its flags."""
    parser = measurements.add_parser(
        "control-plane",
        help="tokens a second and added latency with a device that takes no time",
        description="Tokens a second and added latency through gRPC with the sim device, which takes no time.",
    )
    flags.add_result_flags(parser)
    parser.add_argument(
        "--streams", type=flags.counts, default=[256, 64, 1], metavar="S,…", help="at once, one load each (256,64,1)"
    )
    parser.add_argument(
        "--output-len", type=flags.span, default=Span(512, 1024), metavar="A:B", help="tokens of a stream (512:1024)"
    )
    parser.add_argument("--duration", type=flags.positive, default=5.0, metavar="S", help="of each load, in s (5)")
    parser.add_argument(
        "--step-us",
        type=flags.count,
        default=_STEP_US,
        metavar="US",
        help=f"time of a step where added latency is measured ({_STEP_US})",
    )
    flags.add_load_flags(parser, targets=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """1 where a request failed."""
    if args.plot:
        plot.check()
    if {"device", "sim_step_us"} & set(dict(args.settings)):
        raise InvalidRequest("control-plane sets device and sim_step_us itself: leave their --set away")
    about = report.frame(
        args,
        {
            "kind": "steady streams",
            "streams": args.streams,
            "input_len": _INPUT_LEN,
            "output_len": str(args.output_len),
            "seed": args.seed,
            "duration_s": args.duration,
            "step_us": args.step_us,
        },
    )
    args.spawn = True
    with flags.service(args, _MODEL, _settings(args, 0)) as found:
        outcomes = asyncio.run(_loads(args, found, about))
    with flags.service(args, _MODEL, _settings(args, args.step_us)) as found:
        added = asyncio.run(_added_latency(args, found))
    if args.plot:
        plot.outcomes(args.plot, str(about["command"]), outcomes)
    return report.write_outcomes(args, about, outcomes, added)


def _settings(args: argparse.Namespace, step_us: int) -> dict[str, Setting]:
    most = max(args.streams) + 1  # with the one request more
    return {
        "device": "sim",
        "sim_step_us": step_us,
        "max_model_len": _INPUT_LEN + args.output_len.high,
        "max_num_seqs": most,
        "max_num_batched_tokens": most + 32 * _INPUT_LEN,
    }


def _cases(args: argparse.Namespace) -> list[runs.Steady]:
    """Each number of streams."""
    return [
        runs.Steady(
            streams=streams,
            input_len=_INPUT_LEN,
            output_len=args.output_len,
            ramp_s=min(_RAMP_S, args.duration),  # a short load need not be waited for longer than it lasts
            duration_s=args.duration,
        )
        for streams in args.streams
    ]


async def _loads(args: argparse.Namespace, found: Service, about: report.Frame) -> list[Outcome]:
    """As fast as the service goes."""
    settings = flags.run_settings(args, found)
    async with Session(found) as session:
        await report.describe_service(about, session)
        return [await runs.steady(session, settings, case) for case in _cases(args)]


async def _added_latency(args: argparse.Namespace, found: Service) -> dict[str, object]:
    """What the service adds to steps of `--step-us`, idle and for each number of streams."""
    settings, step_ms = flags.run_settings(args, found), args.step_us / 1000
    told: list[dict[str, object]] = []
    async with Session(found) as session:
        await runs.warm_up(session, settings)
        idle_ms = await runs.first_tokens_ms(session, settings, _INPUT_LEN, _PROBES)
        for case in _cases(args):
            outcome, ttfts_ms = await runs.steady_with_arrivals(session, settings, case, 2 * args.step_us / 1e6)
            per_message = outcome.summary.tokens_per_message
            told.append(
                {
                    "streams": case.streams,
                    "step_us": args.step_us,
                    "added_ttft_ms": distribution(ttfts_ms).minus(step_ms).as_json(),
                    "added_itl_ms": outcome.summary.itl_ms.minus(step_ms).as_json(),
                    "output_tokens_per_s": round(outcome.summary.output_tokens_per_s, 1),
                    "tokens_per_message": None if per_message is None else round(per_message, 3),
                }
            )
    return {"added_ttft_idle_ms": distribution(idle_ms).minus(step_ms).as_json(), "added_latency": told}
