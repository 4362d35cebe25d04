"""`pagewire bench serve`: latency under load, and two cases of it that a service promises something about.

Loads are open (`--rate`) or closed (`--concurrency`); `--long-prompt` and `--cached-prefix` are the two cases.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Sequence

from pagewire.client.bench import cached_prefix, long_prompt, plot, runs
from pagewire.client.bench.runs import Outcome, RunSettings
from pagewire.client.bench.session import Service, Session
from pagewire.client.bench.workload import Job, nano_vllm, of_prompts, random_ids, with_shared_prefix
from pagewire.client.cli import inputs
from pagewire.client.cli.bench import flags, report, service
from pagewire.client.errors import InvalidRequest
from pagewire.client.local import DEFAULT_MODEL
from pagewire.client.prompts import Prompt

_NUM_SEQS = 64
_CONCURRENCY = 16
_TRIALS = 3
_DECODE_INPUT_LEN = 32


def add_parser(measurements: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The flags."""
    parser = measurements.add_parser(
        "serve",
        help="latency under load",
        description="Latency, throughput and goodput under load, and two cases: a long prompt, a cached prefix.",
    )
    flags.add_result_flags(parser)
    load = parser.add_argument_group("load").add_mutually_exclusive_group()
    load.add_argument("--rate", type=flags.rates, metavar="R,…", help="open loop: Poisson arrivals per second")
    load.add_argument("--concurrency", type=flags.counts, metavar="N,…", help=f"closed loop: clients ({_CONCURRENCY})")
    load.add_argument(
        "--long-prompt", type=flags.count, metavar="L", help="a prompt of L tokens arrives while --streams decode"
    )
    load.add_argument(
        "--cached-prefix",
        type=flags.count,
        metavar="C",
        help="prompts of --input-len tokens, of which the first C are cached",
    )
    parser.add_argument(
        "--num-seqs", type=flags.count, default=_NUM_SEQS, metavar="N", help=f"requests of each load ({_NUM_SEQS})"
    )
    flags.add_length_flags(parser)
    parser.add_argument(
        "--prompts", metavar="FILE", help="prompts, as `generate --file` has them, instead of random ids"
    )
    parser.add_argument("--raw", action="store_true", help="text of --prompts without the chat template")
    parser.add_argument(
        "--shared-prefix", type=flags.count, metavar="L", help="the same L random ids in front of every random prompt"
    )
    parser.add_argument(
        "--slo", type=flags.objective, metavar="ttft=MS,tpot=MS,e2e=MS", help="what goodput counts as served well"
    )
    parser.add_argument("--streams", type=flags.count, default=_CONCURRENCY, metavar="N", help="for --long-prompt (16)")
    parser.add_argument(
        "--trials", type=flags.count, default=_TRIALS, metavar="N", help=f"of the two cases ({_TRIALS})"
    )
    parser.add_argument("--quiet", type=flags.positive, default=5.0, metavar="S", help="before --long-prompt, in s (5)")
    parser.add_argument(
        "--prefill-share", type=flags.count, metavar="N", help="the service's, where --admin-target does not tell it"
    )
    flags.add_load_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """1 where a request failed."""
    if args.plot:
        plot.check()
    if args.prompts and args.shared_prefix:
        raise InvalidRequest("--shared-prefix stands before random ids, not before --prompts")
    about = report.frame(args, _workload(args))
    with service.service(args, DEFAULT_MODEL, {"max_queued": max(1024, args.num_seqs)}) as found:
        return asyncio.run(_measure(args, found, about))


def _workload(args: argparse.Namespace) -> dict[str, object]:
    told: dict[str, object] = {"seed": args.seed, "temperature": args.temperature, "ignore_eos": True}
    lengths: dict[str, object] = {"input_len": str(args.input_len), "output_len": str(args.output_len)}
    if args.long_prompt:
        return {
            "kind": "long prompt beside decodes",
            "long_prompt": args.long_prompt,
            "streams": args.streams,
            "input_len": _DECODE_INPUT_LEN,
            "output_len": str(args.output_len),
            "trials": args.trials,
            **told,
        }
    if args.cached_prefix:
        return {
            "kind": "cached prefix",
            "input_len": args.input_len.high,
            "cached_prefix": args.cached_prefix,
            "trials": args.trials,
            **told,
        }
    if args.prompts:
        return {"kind": "prompts of a file", "file": args.prompts, "num_seqs": args.num_seqs, **lengths, **told}
    kind: dict[str, object] = {"kind": "random ids", "shared_prefix": args.shared_prefix or 0}
    return {**kind, "num_seqs": args.num_seqs, **lengths, **told}


async def _measure(args: argparse.Namespace, found: Service, about: report.Frame) -> int:
    settings = flags.run_settings(args, found, args.slo)
    async with Session(found) as session:
        await report.describe_service(about, session)
        if args.long_prompt:
            return await _long_prompt(args, session, settings, about)
        if args.cached_prefix:
            return await _cached_prefix(args, session, settings, about)
        outcomes = await _loads(args, session, settings)
    if args.plot:
        plot.outcomes(args.plot, str(about["command"]), outcomes)
    return report.write_outcomes(args, about, outcomes)


async def _loads(args: argparse.Namespace, session: Session, settings: RunSettings) -> list[Outcome]:
    outcomes = []
    given = _given_prompts(args, session.service)
    for number, rate in enumerate(args.rate or []):
        outcomes.append(await runs.at_rate(session, _jobs(args, settings, given, number), settings, rate))
    if not args.rate:
        for number, clients in enumerate(args.concurrency or [_CONCURRENCY]):
            jobs = _jobs(args, settings, given, number)
            outcomes.append(await runs.at_concurrency(session, jobs, settings, clients))
    return outcomes


def _jobs(args: argparse.Namespace, settings: RunSettings, given: Sequence[Prompt], number: int) -> list[Job]:
    """Each load has prompts of its own, so that none finds those of the load before in the prefix cache."""
    seed = settings.seed + number
    if given:
        return of_prompts(given, args.num_seqs, args.output_len, seed)
    jobs = nano_vllm(args.num_seqs, args.input_len, args.output_len, seed, settings.max_id)
    if not args.shared_prefix:
        return jobs
    return with_shared_prefix(jobs, random_ids(random.Random(f"prefix {seed}"), args.shared_prefix, settings.max_id))


def _given_prompts(args: argparse.Namespace, found: Service) -> list[Prompt]:
    if not args.prompts:
        return []
    can = found.model.capabilities
    # The rest of what `generate` reads its prompts by.
    args.file, args.ids, args.system, args.template_arguments = args.prompts, None, None, None
    args.prompts = []
    return [inputs.dress(prompt, args, can) for prompt in inputs.gather(args)]


async def _long_prompt(args: argparse.Namespace, session: Session, settings: RunSettings, about: report.Frame) -> int:
    case = long_prompt.LongPromptCase(
        long_len=args.long_prompt,
        streams=args.streams,
        input_len=_DECODE_INPUT_LEN,
        output_len=args.output_len,
        quiet_s=args.quiet,
        prefill_share=await _prefill_share(args, session),
        trials=args.trials,
    )
    measured = await long_prompt.measure(session, settings, case)
    if args.plot:
        plot.distributions(
            args.plot,
            str(about["command"]),
            "itl (ms)",
            [("without", measured.waits_without_ms), ("with", measured.waits_with_ms)],
        )
    report.write_figures(args, about, measured.without, measured.as_json())
    return 1 if measured.without.failed else 0


async def _prefill_share(args: argparse.Namespace, session: Session) -> int:
    info = await session.server_info()
    if info is not None and "max_prefill_tokens_per_step" in info.settings:
        return int(info.settings["max_prefill_tokens_per_step"])
    if args.prefill_share is None:
        raise InvalidRequest("--long-prompt needs --admin-target or --prefill-share: the service's prefill share")
    share: int = args.prefill_share
    return share


async def _cached_prefix(args: argparse.Namespace, session: Session, settings: RunSettings, about: report.Frame) -> int:
    measured = await cached_prefix.measure(session, settings, args.input_len.high, args.cached_prefix, args.trials)
    if args.plot:
        plot.distributions(
            args.plot,
            str(about["command"]),
            "ttft (ms)",
            [("uncached", measured.ttfts_ms(cached=False)), ("cached", measured.ttfts_ms(cached=True))],
        )
    report.write_figures(args, about, measured.whole, measured.as_json())
    return 1 if measured.whole.failed else 0
