"""The attention kernels cut in other ways than they ship: tile, warps, stages and programs, each timed on the same
inputs. Not a part of a whole run: it says what to ship on a new kind of card.

    python tests/gpu/report/sweep.py PART OF      compiles every OF-th cut, for the cache
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# As in part.py.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from gpu.report import bare_times
from gpu.report.checks import Check
from gpu.report.floors import Rates
from gpu.report.results import PartRecord

from pagewire.scheduler_svc.models.random_shapes import RANDOM_SHAPES
from pagewire.worker.kernels.sets import triton_kernels

Cut = tuple[str, Callable[[], None]]
"""A name, and what makes the kernels take it."""
_COMPILERS = 14
_DECODES = {
    "1 of 1,024": [1024],
    "16 of 1,024": [1024] * 16,
    "256 of 1,024": [1024] * 256,
    "256 uneven": [64 + 1920 * index // 255 for index in range(256)],
}
_PROMPTS = {"8 of 1,024": [1024] * 8}


def decode_cuts() -> Iterator[Cut]:
    """The shipped one first."""
    from pagewire.worker.kernels.triton import paged_decode

    tile, programs = paged_decode.decode_tile, paged_decode._PROGRAMS_PER_SM

    def take(tokens: int, warps: int, stages: int, per_sm: int) -> Callable[[], None]:
        def set_it() -> None:
            chosen = paged_decode.DecodeTile(tokens, num_warps=warps, num_stages=stages)
            paged_decode.decode_tile = lambda *about: chosen
            paged_decode._PROGRAMS_PER_SM = per_sm

        return set_it

    def shipped() -> None:
        paged_decode.decode_tile, paged_decode._PROGRAMS_PER_SM = tile, programs

    yield "shipped", shipped
    for tokens, warps, stages in (
        (32, 4, 3),
        (32, 2, 4),
        (32, 4, 2),
        (32, 4, 4),
        (32, 4, 5),
        (64, 2, 3),
        (64, 4, 2),
        (64, 4, 3),
        (64, 4, 4),
        (64, 8, 3),
        (128, 4, 2),
        (128, 8, 2),
        (128, 8, 3),
        (16, 2, 4),
        (16, 1, 4),
    ):
        yield f"{tokens} tokens, {warps} warps, {stages} stages", take(tokens, warps, stages, programs)
    for per_sm in (4, 8, 32, 64):
        yield f"{per_sm} programs", take(32, 2, 3, per_sm)


def prefill_cuts() -> Iterator[Cut]:
    """As above."""
    from pagewire.worker.kernels.triton import paged_prefill

    tile = paged_prefill.prefill_tile

    def take(rows: int, tokens: int, warps: int, stages: int) -> Callable[[], None]:
        chosen = paged_prefill.PrefillTile(rows=rows, tokens=tokens, num_warps=warps, num_stages=stages)

        def set_it() -> None:
            paged_prefill.prefill_tile = lambda *about: chosen

        return set_it

    def shipped() -> None:
        paged_prefill.prefill_tile = tile

    yield "shipped", shipped
    for rows, tokens, warps, stages in (
        (128, 64, 8, 2),
        (128, 64, 4, 2),
        (128, 64, 4, 3),
        (128, 32, 8, 3),
        (128, 32, 4, 3),
        (64, 64, 4, 2),
        (64, 64, 4, 3),
        (64, 128, 4, 2),
        (128, 128, 8, 2),
    ):
        yield f"{rows} × {tokens}, {warps} warps, {stages} stages", take(rows, tokens, warps, stages)


def run(device: torch.device, rates: Rates, record: PartRecord) -> None:
    """A row for each cut and batch."""
    compilers = [subprocess.Popen([sys.executable, __file__, str(part), str(_COMPILERS)]) for part in range(_COMPILERS)]
    for compiler in compilers:
        compiler.wait()
    for name, set_it in decode_cuts():
        with record.attempt(f"decode, {name}"):
            set_it()
            for batch, contexts in _DECODES.items():
                record.add(_decode(f"decode {batch}: {name}", contexts, rates, device))
    for name, set_it in prefill_cuts():
        with record.attempt(f"prefill, {name}"):
            set_it()
            for batch, lengths in _PROMPTS.items():
                record.add(_prefill(f"prefill {batch}: {name}", lengths, rates, device))


def _decode(what: str, contexts: list[int], rates: Rates, device: torch.device) -> Check:
    config, paged = RANDOM_SHAPES["qwen3-0.6b"], triton_kernels(overlap=True)
    return bare_times.decode(what, config, contexts, paged, rates, device)


def _prefill(what: str, lengths: list[int], rates: Rates, device: torch.device) -> Check:
    config, paged = RANDOM_SHAPES["qwen3-0.6b"], triton_kernels(overlap=True)
    return bare_times.prefill(what, config, lengths, paged, rates, device)


def main(arguments: list[str]) -> int:
    """Compiles its share; one that does not compile says so, and is missed by whoever times it."""
    part, of = map(int, arguments)
    device, rates = torch.device("cuda"), Rates(bytes_per_s=1.0, flops_per_s=1.0)
    # Tables whose rows are a multiple of 16 long, and others.
    work: list[tuple[Callable[[], None], Callable[[], Any]]] = [
        (set_it, functools.partial(_decode, "", [context], rates, device))
        for _, set_it in decode_cuts()
        for context in (1024, 1984)
    ]
    work += [(set_it, functools.partial(_prefill, "", [1024], rates, device)) for _, set_it in prefill_cuts()]
    for set_it, compile_it in work[part::of]:
        set_it()
        try:
            compile_it()
        except Exception as error:  # too much shared memory, for one
            print(f"{type(error).__name__}: {error}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
