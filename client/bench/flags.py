"""Flags that measurements share: their values, read and checked, and the service that they describe."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields

from pagewire.client.bench.runs import RunSettings
from pagewire.client.bench.session import Service
from pagewire.client.bench.summary import Objective
from pagewire.client.bench.workload import DEFAULT_SPAN, NANO_VLLM_MAX_ID, Span
from pagewire.client.cli import connection
from pagewire.client.errors import InvalidRequest, Unavailable
from pagewire.client.local import LocalService, Setting
from pagewire.client.retry import NO_RETRY
from pagewire.client.sync import Client
from pagewire.client.transport import Transport
from pagewire.client.types import Model

_NANO_VLLM_TEMPERATURE = 0.6
_DEFAULT_WARM_UP = 4


def add_result_flags(parser: argparse.ArgumentParser, *, plots: bool = True) -> None:
    """How the result is told, and the seed of what is asked."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    if plots:
        parser.add_argument("--plot", metavar="FILE.png", help="draw it too; needs pagewire[plot]")
    parser.add_argument("--seed", type=count_or_none, default=0, metavar="S", help="of the workload (0)")


def add_length_flags(parser: argparse.ArgumentParser, default: Span | None = DEFAULT_SPAN) -> None:
    """Lengths, as the nano-vllm workload has them; with the default None it is told what was not given."""
    for name, what in (("--input-len", "prompt"), ("--output-len", "output")):
        parser.add_argument(
            name, type=span, default=default, metavar="A:B", help=f"{what} tokens, or A for A:A ({DEFAULT_SPAN})"
        )


def add_load_flags(parser: argparse.ArgumentParser, *, targets: bool = True) -> None:
    """What every load on a service takes, and which service: one of its own alone without `targets`."""
    parser.add_argument(
        "--max-id", type=count_or_none, metavar="ID", help=f"largest token id of a prompt ({NANO_VLLM_MAX_ID})"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=_NANO_VLLM_TEMPERATURE,
        metavar="T",
        help=f"0 is greedy ({_NANO_VLLM_TEMPERATURE})",
    )
    parser.add_argument(
        "--warm-up",
        type=count_or_none,
        default=_DEFAULT_WARM_UP,
        metavar="N",
        help=f"requests before the measured ones ({_DEFAULT_WARM_UP})",
    )
    if targets:
        _add_service_flags(parser)
    else:
        connection.add_spawn_flags(parser)


def run_settings(args: argparse.Namespace, measured: Service, objective: Objective | None = None) -> RunSettings:
    """From the flags. Raises InvalidRequest for ids that the model does not have."""
    vocab_size, wanted = measured.model.limits.vocab_size, args.max_id
    if wanted is not None and wanted >= vocab_size:
        raise InvalidRequest(f"--max-id is {wanted}; the model's ids are less than {vocab_size}")
    return RunSettings(
        temperature=args.temperature,
        seed=args.seed,
        max_id=min(NANO_VLLM_MAX_ID, vocab_size - 1) if wanted is None else wanted,
        warm_up=args.warm_up,
        objective=objective,
    )


def _add_service_flags(parser: argparse.ArgumentParser) -> None:
    """--target or --spawn, and AdminService beside a target."""
    connection.add_model_flags(parser)
    group = parser.add_argument_group("operator")
    group.add_argument(
        "--admin-target",
        metavar="HOST:PORT",
        help="AdminService of the --target service, for its idle share, settings and cache (known with --spawn)",
    )
    group.add_argument("--admin-api-key", metavar="KEY", help="its key, where the service has keys")


@contextmanager
def service(args: argparse.Namespace, model: str, needed: Mapping[str, Setting]) -> Iterator[Service]:
    """The service that the flags describe. A spawned one gets `model` unless --model says another, and `needed`
    except where --set says otherwise. Raises PagewireErrors where there is none."""
    if not args.spawn:
        if args.settings:
            raise InvalidRequest(f"--set {args.settings[0][0]} is a setting of a --spawn service")
        tls = connection.tls(args)
        admin = None
        if args.admin_target:
            admin = Transport(target=args.admin_target, api_key=args.admin_api_key, tls=tls)
        transport = Transport(target=args.target, api_key=args.api_key, tls=tls)
        yield Service(transport=transport, admin=admin, model=_model(args))
        return
    if vars(args).get("admin_target"):
        raise InvalidRequest("--admin-target goes with --target; a --spawn service's own is known")
    settings = {"log_level": "warning", **needed, **dict(args.settings)}
    spawned = LocalService(args.model or model, settings, quiet=not sys.stderr.isatty())
    try:
        ready = spawned.start(None)
        with Client(ready.address) as client:
            served = client.model()
        admin = Transport(target=ready.admin_address) if ready.admin_address else None
        yield Service(transport=Transport(target=ready.address), admin=admin, model=served)
    finally:
        spawned.stop()


def _model(args: argparse.Namespace) -> Model:
    with connection.client(args, NO_RETRY) as client:
        try:
            return client.model(args.model or "")
        except Unavailable as error:
            if error.reason:
                raise
            raise connection.unreachable(args.target, error) from error


def span(text: str) -> Span:
    """A:B, or A for A:A."""
    low, _, high = text.partition(":")
    try:
        return Span(int(low), int(high or low))
    except (ValueError, InvalidRequest) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B with 1 <= A <= B") from error


def count(text: str) -> int:
    """A whole number from 1."""
    return int(_number(text, int, 1))


def count_or_none(text: str) -> int:
    """A whole number from 0."""
    return int(_number(text, int, 0))


def counts(text: str) -> list[int]:
    """Several, with commas."""
    return [count(part) for part in text.split(",")]


def rates(text: str) -> list[float]:
    """Numbers above 0, with commas."""
    return [positive(part) for part in text.split(",")]


def positive(text: str) -> float:
    """A number above 0."""
    value = _number(text, float, 0)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be more than 0")
    return value


def objective(text: str) -> Objective:
    """ttft=MS,tpot=MS,e2e=MS, each at most once."""
    limits: dict[str, float] = {}
    known = {field.name for field in fields(Objective)}
    for part in text.split(","):
        name, separator, value = part.partition("=")
        key = f"{name.strip()}_ms"
        if not separator or key not in known or key in limits:
            raise argparse.ArgumentTypeError(f"{text!r} is not ttft=MS,tpot=MS,e2e=MS with one of them at least")
        limits[key] = positive(value)
    return Objective(**limits)


def _number(text: str, kind: Callable[[str], float], least: float) -> float:
    try:
        value = kind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
    if not least <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be at least {least:g}, and finite")
    return value
