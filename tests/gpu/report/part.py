"""One process of the run: does the parts it is told, one after the other, and writes to a file what each finds.

    python tests/gpu/report/part.py --results FILE [--dry-run] PART...

What a later part needs of an earlier one (the card's rates, the service's speed) it reads from that file. A part that
raises is written down as an error; one that ends the process is missed by the parent, which then goes on with the next.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

# Python puts this file's folder there, whose modules have names of packages that others look for (`kernels`).
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[2]))

import msgspec
from gpu.report.bounds import LEAST_SHARE_OF_DIRECT
from gpu.report.checks import Check, PartResult, Skipped
from gpu.report.floors import Rates
from gpu.report.results import PartRecord, read_results
from gpu.report.scale import DRY, GPU, Scale

if TYPE_CHECKING:
    from gpu.report.direct import DirectEngine

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
        do_part(name, scale, earlier, PartRecord(args.results, name))
    return 0


def do_part(name: str, scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    """Writes down what becomes of a part, whatever it raises."""
    try:
        with record.attempt():
            PARTS[name](scale, earlier, record)
    except Skipped as reason:
        record.end(skipped=str(reason))
    else:
        record.end()


def _card(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    import torch
    from gpu.report import card

    device = torch.device(scale.device)
    record.add(name=card.name_of(device), torch=str(torch.__version__))
    rates = card.measure(device, scale.copy_bytes, scale.matmul_size)
    record.add(
        Check(what="copied, read and written", seen=rates.bytes_per_s / 1e12, unit="TB/s"),
        Check(what="product of bf16 matrices", seen=rates.flops_per_s / 1e12, unit="TFLOP/s"),
        bytes_per_s=rates.bytes_per_s,
        flops_per_s=rates.flops_per_s,
    )


def _card_of(earlier: Earlier) -> tuple[str, Rates]:
    """The card's name and rates. Raises ValueError where they were not measured."""
    if "card" not in earlier or earlier["card"].status != "held":
        raise ValueError("the card was not measured, so there are no floors")
    return _figure(earlier, "card", "name", str), Rates(
        bytes_per_s=_figure(earlier, "card", "bytes_per_s", float),
        flops_per_s=_figure(earlier, "card", "flops_per_s", float),
    )


def _kernels(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    import torch
    from gpu.report import kernels

    kernels.run(scale, torch.device(scale.device), record)


def _steps(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    from gpu.report import steps

    steps.run(scale, "tiny", record)


def _steps_wide(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    from gpu.report import steps

    if scale.is_dry:
        raise Skipped("a dry run has no device")
    steps.run(scale, "heads of 128", record)


def _logits(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    import torch
    from gpu.report import logits

    record.add(*logits.run(scale, torch.device(scale.device)))


def _flash(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    import torch
    from gpu.report import flash

    flash.run(scale, torch.device(scale.device), record)


def _small(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    from gpu.report import service

    card, rates = _card_of(earlier)
    with service.spawned(scale, scale.small_shape, record) as found:
        asyncio.run(service.small_model(found, scale, card, rates, record))
    if "direct" not in earlier:
        return
    served = _figure({"service": record.so_far()}, "service", "workload_tokens_per_s", list[float])
    direct = _figure(earlier, "direct", "workload_tokens_per_s", list[float])
    check = Check(
        what="nano-vllm workload: the service / the worker without gRPC",
        seen=statistics.median(served) / statistics.median(direct),
        unit="x",
        relation="at least",
        limit=LEAST_SHARE_OF_DIRECT,
        is_judged=not scale.is_dry,
    )
    record.add(check)


def _large(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    from gpu.report import service

    card, rates = _card_of(earlier)
    with service.spawned(scale, scale.large_shape, record) as found:
        asyncio.run(service.large_model(found, scale, card, rates, record))


_engines: list[DirectEngine] = []
"""One for all parts of this process: a second would not find its memory."""


def _engine(scale: Scale) -> DirectEngine:
    from gpu.report import direct, steps

    if not _engines:
        _engines.append(direct.DirectEngine(scale, steps.platform_of(scale)))
    return _engines[0]


def _direct(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    from gpu.report import direct

    card, rates = _card_of(earlier)
    direct.run(scale, _engine(scale), card, rates, record)


def _special_times(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    from gpu.report import special_times

    special_times.run(scale, _engine(scale), record)


def _skinny(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    import torch
    from gpu.report import skinny

    skinny.run(scale, scale.small_shape, 6, torch.device(scale.device), record)


def _skinny_large(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    import torch
    from gpu.report import skinny

    skinny.run(scale, scale.large_shape, 2, torch.device(scale.device), record)


def _collective(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    import torch
    from gpu.report import collective

    record.add(collective.run(torch.device(scale.device)))


def _sanitizer(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    from gpu.report import sanitizer

    if scale.is_dry:
        raise Skipped("a dry run has no device")
    sanitizer.run(record)


def _compile_small(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    from gpu.report import compiling, steps

    compiling.run(scale, scale.small_shape, steps.platform_of(scale), record)


def _compile_large(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    from gpu.report import compiling, steps

    compiling.run(scale, scale.large_shape, steps.platform_of(scale), record)


def _bare_times(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    import torch
    from gpu.report import bare_times

    _, rates = _card_of(earlier)
    bare_times.run(scale, torch.device(scale.device), rates, record)
    if not scale.is_dry:
        gc.collect()
        torch.cuda.empty_cache()  # the parts after it in this process want all of the memory


def _exact(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    import torch
    from gpu.report import exact

    if scale.is_dry:
        raise Skipped("Triton's interpreter multiplies bf16 wrongly")
    exact.run(scale, "bfloat16", torch.device(scale.device), record)


def _exact_fp32(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    import torch
    from gpu.report import exact

    exact.run(scale, "float32", torch.device(scale.device), record)


def _exact_times(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    import torch
    from gpu.report import exact_times

    _, rates = _card_of(earlier)
    exact_times.run(scale, torch.device(scale.device), rates, record)


def _sweep(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    import torch
    from gpu.report import sweep

    if scale.is_dry:
        raise Skipped("a dry run has no device")
    _, rates = _card_of(earlier)
    sweep.run(torch.device(scale.device), rates, record)


def _peer_workload(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    from gpu.report import service

    card, rates = _card_of(earlier)
    with service.spawned(scale, scale.small_shape, record) as found:
        asyncio.run(service.peer_workload(found, scale, card, rates, record))


def _peer(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    import torch
    from gpu.report import peer

    rate = peer.run(scale, torch.device(scale.device), record)
    record.add(peer_tokens_per_s=rate)
    ours = _figure(earlier, "peer workload", "peer_workload_tokens_per_s", float)
    record.add(Check(what="the service / transformers' generate_batch", seen=ours / rate, unit="x"))


def _kernel_times(scale: Scale, earlier: Earlier, record: PartRecord) -> None:
    from gpu.report import kernel_times

    _, rates = _card_of(earlier)
    kernel_times.run(scale, _engine(scale), rates, record)


def _figure(earlier: Earlier, part: str, name: str, kind: type[T]) -> T:
    """A figure of an earlier part. Raises ValueError where the part did not get so far."""
    if part not in earlier or name not in earlier[part].figures:
        raise ValueError(f"the part {part} has no {name} to compare with")
    return msgspec.convert(earlier[part].figures[name], kind)


PARTS: dict[str, Callable[[Scale, Earlier, PartRecord], None]] = {
    "card": _card,
    "skinny linears": _skinny,
    "skinny linears, large": _skinny_large,
    "kernels": _kernels,
    "steps": _steps,
    "steps, wide heads": _steps_wide,
    "logits": _logits,
    "flash": _flash,
    "collectives": _collective,
    "sanitizer": _sanitizer,
    "compile small": _compile_small,
    "compile large": _compile_large,
    "bare times": _bare_times,
    "kernel times": _kernel_times,
    "direct": _direct,
    "special times": _special_times,
    "service": _small,
    "large": _large,
    "exact": _exact,
    "exact, fp32": _exact_fp32,
    "exact times": _exact_times,
    "sweep": _sweep,
    "peer workload": _peer_workload,
    "peer": _peer,
}

if __name__ == "__main__":
    sys.exit(main())
