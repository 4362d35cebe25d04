"""Compiles the kernels of few rows for sm_90, overlapped and not, and for sm_86, a line of JSON each. A program: Triton
must not interpret.

The kernels' own callers launch them, as in `compile_elementwise`.
"""

import json
import re
import sys
from typing import Any

import torch
from compile_elementwise import CPU, WAIT, Target, sources_of_loads, stack_bytes
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from pagewire.worker.kernels.triton import skinny

LAUNCH_DEPENDENTS = "griddepcontrol.launch_dependents"


def report_compilations() -> None:
    launch = JITFunction.run

    def compile_only(function: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = launch(function, *args, grid=grid, warmup=True, **kwargs)
        metadata, ptx = kernel.metadata, kernel.asm["ptx"]
        before_wait, wait, _ = ptx.partition(WAIT)
        print(
            json.dumps(
                {
                    "name": function.__name__,
                    "arch": metadata.target.arch,
                    "width": kwargs["WIDTH"],
                    "rows": kwargs["ROWS"],
                    "is_gated": kwargs.get("IS_GATED", False),
                    "num_programs": grid[0],
                    "overlap": kwargs["OVERLAP"],
                    "launch_pdl": metadata.launch_pdl,
                    "launches_dependents": LAUNCH_DEPENDENTS in before_wait,
                    "waits": bool(wait),
                    "stores_before_wait": len(re.findall(r"\bst\.global", before_wait)) if wait else 0,
                    "wide_loads_before_wait": len(re.findall(r"\bld\.global\S*\.v4\.b32", before_wait)) if wait else 0,
                    "sources_before_wait": sorted(sources_of_loads(before_wait)) if wait else [],
                    "tile_loads": kwargs["BLOCK"]
                    * (1 + kwargs.get("IS_GATED", False))
                    // kwargs["num_warps"]
                    * kwargs["AHEAD"],
                    "shared": metadata.shared,
                    "stack_bytes": stack_bytes(kernel.asm["cubin"]),
                }
            )
        )
        return kernel

    JITFunction.run = compile_only


def compile_layer(
    num_rows: int, width: int, attended: int, qkv: int, inner: int, dtype: torch.dtype, *, overlap: bool
) -> None:
    def values(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=CPU)

    x_TE, delta_TE, norm_E = torch.empty(2, num_rows, width), values(num_rows, width), torch.empty(width)
    skinny.linear(values(num_rows, attended), values(width, attended), None, delta_TE, overlap=overlap)
    skinny.add_norm_gate_up(
        x_TE[0],
        delta_TE,
        norm_E,
        0.1,
        values(2 * inner, width),
        None,
        x_TE[1],
        values(num_rows, inner),
        overlap=overlap,
    )
    skinny.linear(values(num_rows, inner), values(width, inner), None, delta_TE, overlap=overlap)
    skinny.add_norm_linear(
        x_TE[0], delta_TE, norm_E, 0.1, values(qkv, width), values(qkv), x_TE[1], values(num_rows, qkv), overlap=overlap
    )


def main() -> None:
    report_compilations()
    for arch, overlap in ((90, True), (90, False), (86, False)):
        driver.set_active(Target(arch))
        for num_rows in (1, 3):
            compile_layer(num_rows, 1024, 2048, 4096, 3072, torch.bfloat16, overlap=overlap)
            if arch == 90 and overlap:  # as Qwen3-4B's and 8B's, as far as they run in these kernels
                width = 4096 if num_rows == 1 else 2560
                compile_layer(num_rows, width, width, 6144, width, torch.bfloat16, overlap=overlap)
    # An odd shape, and fp32.
    compile_layer(2, 576, 576, 960, 1536, torch.float32, overlap=False)
    driver.set_active(Target(90))
    skinny.linear(
        torch.empty(1, 1024, dtype=torch.bfloat16),
        torch.empty(151_936, 1024, dtype=torch.bfloat16),
        None,
        torch.empty(1, 151_936),
        overlap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
