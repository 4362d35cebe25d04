"""One process of the run: does the parts it is told, one after the other, and appends each result to a file.

    python tests/gpu/report/part.py --results FILE [--dry-run] PART...

What a later part needs of an earlier one (the card's rates, the service's speed) it reads from that file. A part that
raises is written down as an error; one that ends the process is missed by the parent, which then goes on with the next.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[2]))

import msgspec
from gpu.report.bounds import LEAST_SHARE_OF_DIRECT
from gpu.report.checks import Check, PartResult, Skipped, result_of
from gpu.report.floors import Rates
from gpu.report.results import append_result, read_results
from gpu.report.scale import DRY, GPU, Scale

Found = tuple[list[Check], dict[str, object]]
Earlier = dict[str, PartResult]
T = TypeVar("T")


def main() -> int:
    """0, also where parts failed: their results say so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("parts", nargs="+", choices=list(PARTS), metavar="PART", help=", ".join(PARTS))
    args = parser.parse_args()
    scale = DRY if args.dry_run else GPU
    for name in args.parts:
        earlier = {result.part: result for result in read_results(args.results)}
        append_result(args.results, do_part(name, scale, earlier))
    return 0


def do_part(name: str, scale: Scale, earlier: Earlier) -> PartResult:
    """What became of a part, whatever it raised."""
    begin_s = time.perf_counter()
    try:
        checks, figures = PARTS[name](scale, earlier)
    except Skipped as reason:
        return PartResult(part=name, status="skipped", seconds=time.perf_counter() - begin_s, note=str(reason))
    except Exception as error:
        traceback.print_exc()
        note = f"{type(error).__name__}: {error}"
        return PartResult(part=name, status="error", seconds=time.perf_counter() - begin_s, note=note)
    return result_of(name, time.perf_counter() - begin_s, checks, figures)


def _card(scale: Scale, earlier: Earlier) -> Found:
    import torch
    from gpu.report import card

    device = torch.device(scale.device)
    rates = card.measure(device, scale.copy_bytes, scale.matmul_size)
    checks = [
        Check(what="copied, read and written", seen=rates.bytes_per_s / 1e12, unit="TB/s"),
        Check(what="product of bf16 matrices", seen=rates.flops_per_s / 1e12, unit="TFLOP/s"),
    ]
    return checks, {
        "name": card.name_of(device),
        "torch": str(torch.__version__),
        **msgspec.structs.asdict(_rates(rates)),
    }


class _Measured(msgspec.Struct, frozen=True):
    bytes_per_s: float
    flops_per_s: float


def _rates(rates: Rates) -> _Measured:
    return _Measured(rates.bytes_per_s, rates.flops_per_s)


def _card_of(earlier: Earlier) -> tuple[str, Rates]:
    """The card's name and rates. Raises ValueError where they were not measured."""
    if "card" not in earlier or earlier["card"].status != "held":
        raise ValueError("the card was not measured, so there are no floors")
    figures = earlier["card"].figures
    measured = msgspec.convert({name: figures[name] for name in ("bytes_per_s", "flops_per_s")}, _Measured)
    return str(figures["name"]), Rates(bytes_per_s=measured.bytes_per_s, flops_per_s=measured.flops_per_s)


def _kernels(scale: Scale, earlier: Earlier) -> Found:
    import torch
    from gpu.report import kernels

    return kernels.run(scale, torch.device(scale.device)), {}


def _steps(scale: Scale, earlier: Earlier) -> Found:
    from gpu.report import steps

    return steps.run(scale)


def _logits(scale: Scale, earlier: Earlier) -> Found:
    import torch
    from gpu.report import logits

    return logits.run(scale, torch.device(scale.device)), {}


def _flash(scale: Scale, earlier: Earlier) -> Found:
    import torch
    from gpu.report import flash

    return flash.run(scale, torch.device(scale.device))


def _small(scale: Scale, earlier: Earlier) -> Found:
    from gpu.report import service

    card, rates = _card_of(earlier)
    with service.spawned(scale, scale.small_shape) as (found, start_s):
        checks, figures = asyncio.run(service.small_model(found, scale, card, rates))
    return checks, figures | {"start_s": start_s}


def _large(scale: Scale, earlier: Earlier) -> Found:
    from gpu.report import service

    card, rates = _card_of(earlier)
    with service.spawned(scale, scale.large_shape) as (found, start_s):
        checks, figures = asyncio.run(service.large_model(found, scale, card, rates))
    return checks, figures | {"start_s": start_s}


def _direct(scale: Scale, earlier: Earlier) -> Found:
    from gpu.report import direct, steps

    served = _figure(earlier, "service", "workload_tokens_per_s", list[float])
    found = direct.run(scale, steps.platform_of(scale))
    ratio = statistics.median(served) / statistics.median(found)
    check = Check(
        what="nano-vllm workload: the service / the worker without gRPC",
        seen=ratio,
        unit="x",
        relation="at least",
        limit=LEAST_SHARE_OF_DIRECT,
        is_judged=not scale.is_dry,
    )
    return [check], {"direct_tokens_per_s": found}


def _peer(scale: Scale, earlier: Earlier) -> Found:
    import torch
    from gpu.report import peer

    ours = _figure(earlier, "service", "peer_workload_tokens_per_s", float)
    rate, versions = peer.run(scale, torch.device(scale.device))
    check = Check(what="the service / transformers' generate_batch", seen=ours / rate, unit="x")
    return [check], {"peer_tokens_per_s": rate, "our_tokens_per_s": ours, "versions": versions}


def _figure(earlier: Earlier, part: str, name: str, kind: type[T]) -> T:
    """A figure of an earlier part. Raises ValueError where the part did not get so far."""
    if part not in earlier or name not in earlier[part].figures:
        raise ValueError(f"the part {part} has no {name} to compare with")
    return msgspec.convert(earlier[part].figures[name], kind)


PARTS: dict[str, Callable[[Scale, Earlier], Found]] = {
    "card": _card,
    "kernels": _kernels,
    "steps": _steps,
    "logits": _logits,
    "flash": _flash,
    "service": _small,
    "direct": _direct,
    "large": _large,
    "peer": _peer,
}

if __name__ == "__main__":
    sys.exit(main())
