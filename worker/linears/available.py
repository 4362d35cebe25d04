"""Which kinds of linear this machine's CPU has, for a report: nothing here decides what a worker uses."""

from dataclasses import dataclass

import torch

from pagewire.worker.linears.int8 import Int8Unavailable, NativeInt8Linear, OneDnnInt8Linear, int8_on_torch
from pagewire.worker.linears.native import NativeLinear
from pagewire.worker.linears.torch import OneDnnLinear, TorchLinear, choose_linear
from pagewire.worker.native.library import NativeLibrary

_FOR_INT8 = "with --quantization int8"


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuLinear:
    """One kind."""

    name: str
    available: bool
    chosen: bool
    """A worker without further settings would use it, for one dtype at least."""
    note: str


def cpu_linears(library: NativeLibrary | None, why_not: str) -> list[CpuLinear]:
    """Best first. Without a `library`, `why_not` says why it is not used."""
    has_library = library is not None
    level = f"on {library.level}" if library is not None else why_not
    packing = "; bfloat16 in 12 bits a value, without loss" if library is not None and library.compacts else ""
    kinds = {dtype: choose_linear(torch.device("cpu"), dtype) for dtype in (torch.bfloat16, torch.float32)}
    of_torch = []
    for kind in (OneDnnLinear, TorchLinear):
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype, best in kinds.items() if best is kind)
        of_torch.append(
            CpuLinear(
                name=kind.name,
                available=kind is TorchLinear or bool(dtypes),
                chosen=bool(dtypes) and not has_library,
                note=f"without the native library, for {dtypes}" if dtypes else "",
            )
        )
    try:
        int8_on_torch()
        without_int8 = ""
    except Int8Unavailable as error:
        without_int8 = str(error)
    return [
        CpuLinear(name=NativeLinear.name, available=has_library, chosen=has_library, note=level + packing),
        *of_torch,
        CpuLinear(
            name=NativeInt8Linear.name,
            available=has_library,
            chosen=False,
            note=f"{_FOR_INT8}, {level}" if has_library else level,
        ),
        CpuLinear(
            name=OneDnnInt8Linear.name,
            available=not without_int8,
            chosen=False,
            note=without_int8 or f"{_FOR_INT8}, without the native library",
        ),
    ]
