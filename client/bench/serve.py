"""`pagewire bench serve`: latency under load, and two cases of it that a service promises something about.

Loads are open (`--rate`) or closed (`--concurrency`); `--long-prompt` and `--cached-prefix` are the two cases.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Sequence

from pagewire.client.bench import cases, flags, plot, report, runs
from pagewire.client.bench.runs import Outcome, RunSettings
from pagewire.client.bench.session import Service, Session
from pagewire.client.bench.workload import (
    DEFAULT_SPAN,
    Job,
    Span,
    nano_vllm,
    of_prompts,
    random_ids,
    with_shared_prefix,
)
from pagewire.client.cli import inputs, tools
from pagewire.client.errors import InvalidRequest
from pagewire.client.local import DEFAULT_MODEL
from pagewire.client.prompts import Prompt

_NUM_SEQS = 64
_CONCURRENCY = 16
_TRIALS = 3
_QUIET_S = 5.0
_DECODE_INPUT_LEN = 32
_CACHED_INPUT_LEN = Span(1000, 1000)

_LOAD, _LONG_PROMPT, _CACHED_PREFIX = "a load", "--long-prompt", "--cached-prefix"
_DEFAULTS: dict[str, dict[str, object]] = {
    _LOAD: {
        "num_seqs": _NUM_SEQS,
        "input_len": DEFAULT_SPAN,
        "output_len": DEFAULT_SPAN,
        "prompts": None,
        "raw": None,
        "shared_prefix": None,
        "slo": None,
    },
    _LONG_PROMPT: {
        "streams": _CONCURRENCY,
        "output_len": DEFAULT_SPAN,
        "trials": _TRIALS,
        "quiet": _QUIET_S,
        "prefill_share": None,
    },
    _CACHED_PREFIX: {"input_len": _CACHED_INPUT_LEN, "trials": _TRIALS},
}
"""The flags that apply to each kind of measurement, and their values where they are not given."""


def add_parser(measurements: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command and its flags."""
    parser = measurements.add_parser(
        "serve",
        help="latency under load",
        description="Latency, throughput and goodput under load, and two cases: a long prompt, a cached prefix.",
    )
    flags.add_result_flags(parser)
    kind = parser.add_argument_group("what comes").add_mutually_exclusive_group()
    kind.add_argument("--rate", type=flags.rates, metavar="R,…", help="open loop: Poisson arrivals per second")
    kind.add_argument("--concurrency", type=flags.counts, metavar="N,…", help=f"closed loop: clients ({_CONCURRENCY})")
    kind.add_argument(
        "--long-prompt", type=flags.count, metavar="L", help="a prompt of L tokens arrives while --streams decode"
    )
    kind.add_argument(
        "--cached-prefix", type=flags.count, metavar="C", help="prompts of --input-len tokens, the first C cached"
    )
    load = parser.add_argument_group("with --rate and --concurrency")
    load.add_argument("--num-seqs", type=flags.count, metavar="N", help=f"requests of each load ({_NUM_SEQS})")
    load.add_argument("--prompts", metavar="FILE", help="prompts, as `generate --file` has them, instead of random ids")
    load.add_argument("--raw", action="store_true", default=None, help="their text without the chat template")
    load.add_argument(
        "--shared-prefix", type=flags.count, metavar="L", help="the same L random ids in front of every random prompt"
    )
    load.add_argument(
        "--slo", type=flags.objective, metavar="ttft=MS,tpot=MS,e2e=MS", help="what goodput counts as served well"
    )
    case = parser.add_argument_group("with --long-prompt and --cached-prefix")
    case.add_argument("--trials", type=flags.count, metavar="N", help=f"prompts, or pairs of them ({_TRIALS})")
    case.add_argument("--streams", type=flags.count, metavar="N", help=f"that decode, for the first ({_CONCURRENCY})")
    case.add_argument(
        "--quiet", type=flags.positive, metavar="S", help=f"watch the streams alone so long, in s ({_QUIET_S:g})"
    )
    case.add_argument(
        "--prefill-share", type=flags.count, metavar="N", help="the service's, where --admin-target does not tell it"
    )
    flags.add_length_flags(parser, default=None)
    flags.add_load_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """1 where a request failed."""
    if args.plot:
        plot.check()
    _fill_in(args)
    about = report.frame(args, _workload(args))
    needed = {"max_queued": max(1024, args.num_seqs or 0)}
    with flags.service(args, DEFAULT_MODEL, needed) as found:
        return asyncio.run(_measure(args, found, about))


def _fill_in(args: argparse.Namespace) -> None:
    """Defaults of what was left out. Raises InvalidRequest for a flag that this kind of measurement has no use for."""
    kind = _LONG_PROMPT if args.long_prompt else _CACHED_PREFIX if args.cached_prefix else _LOAD
    applies = _DEFAULTS[kind]
    for name in sorted({name for defaults in _DEFAULTS.values() for name in defaults}):
        given, flag = vars(args)[name], f"--{name.replace('_', '-')}"
        if given is None:
            setattr(args, name, applies.get(name))
        elif name not in applies:
            raise InvalidRequest(f"{flag} does not apply to {kind}")
    if args.prompts and args.shared_prefix:
        raise InvalidRequest("--shared-prefix stands before random ids, not before --prompts")
    if args.raw and not args.prompts:
        raise InvalidRequest("--raw is about the text of --prompts")
    if kind == _CACHED_PREFIX and args.input_len.low != args.input_len.high:
        raise InvalidRequest(f"--input-len is {args.input_len}; --cached-prefix compares prompts of one length")


def _workload(args: argparse.Namespace) -> dict[str, object]:
    told: dict[str, object] = {"seed": args.seed, "temperature": args.temperature, "ignore_eos": True}
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
    lengths: dict[str, object] = {"num_seqs": args.num_seqs, "output_len": str(args.output_len), **told}
    if args.prompts:
        return {"kind": "prompts of a file", "file": args.prompts, **lengths}
    prefix: int = args.shared_prefix or 0
    return {"kind": "random ids", "input_len": str(args.input_len), "shared_prefix": prefix, **lengths}


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
    source = argparse.Namespace(
        prompts=[],
        file=args.prompts,
        ids=None,
        raw=args.raw,
        system=None,
        template_arguments=None,
        **dict.fromkeys(tools.CHAT_FLAGS),
    )
    return [inputs.dress(prompt, source, found.model.capabilities) for prompt in inputs.gather(source)]


async def _long_prompt(args: argparse.Namespace, session: Session, settings: RunSettings, about: report.Frame) -> int:
    case = cases.LongPromptCase(
        long_len=args.long_prompt,
        streams=args.streams,
        input_len=_DECODE_INPUT_LEN,
        output_len=args.output_len,
        quiet_s=args.quiet,
        prefill_share=await _prefill_share(args, session),
        trials=args.trials,
    )
    measured = await cases.measure_long_prompt(session, settings, case)
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
    """What the service says, else what --prefill-share says."""
    info = await session.server_info()
    told = None if info is None else info.settings.get("max_prefill_tokens_per_step")
    given: int | None = args.prefill_share
    if told is None and given is None:
        raise InvalidRequest("--long-prompt needs --admin-target or --prefill-share: the service's prefill share")
    if told is not None and given is not None and given != int(told):
        raise InvalidRequest(f"--prefill-share is {given}; the service says that its own is {told}")
    return int(told) if told is not None else given or 0


async def _cached_prefix(args: argparse.Namespace, session: Session, settings: RunSettings, about: report.Frame) -> int:
    measured = await cases.measure_cached_prefix(
        session, settings, args.input_len.high, args.cached_prefix, args.trials
    )
    if args.plot:
        plot.distributions(
            args.plot,
            str(about["command"]),
            "ttft (ms)",
            [("uncached", measured.ttfts_ms(cached=False)), ("cached", measured.ttfts_ms(cached=True))],
        )
    report.write_figures(args, about, measured.whole, measured.as_json())
    return 1 if measured.whole.failed else 0
