"""Compiles the exact kernels for sm_90, sm_86 and sm_80, a line of JSON each. A program: Triton must not interpret.

By their own callers, as `compile_elementwise` does it.
"""

import json
import re
import sys
from typing import Any

import torch
from compile_elementwise import CPU, WAIT, Target, stack_bytes
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from pagewire.worker.kernels.triton import exact_attention, exact_linear
from pagewire.worker.kernels.workspaces import DecodeWorkspace

_SHARED = {90: 227 << 10, 86: 99 << 10, 80: 163 << 10}
_PRODUCT = re.compile(r"(wgmma\.mma_async|mma)\.sync\.aligned\.(m\d+n\d+k\d+)")
_MEMORY = re.compile(r"\b(?:ld|st|atom|red|cp\.async\S*)\.(?:shared\.)?global")
BLOCK_SIZE = 64


def report_compilations() -> None:
    launch = JITFunction.run

    def compile_only(function: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = launch(function, *args, grid=grid, warmup=True, **kwargs)
        metadata, ptx = kernel.metadata, kernel.asm["ptx"]
        before_wait, wait, _ = ptx.partition(WAIT)
        print(
            json.dumps(
                {
                    "name": "decode" if kwargs.get("DECODES") else "prefill" if "DECODES" in kwargs else "linear",
                    "arch": metadata.target.arch,
                    "heads": [kwargs.get("K"), kwargs.get("G"), kwargs.get("D")],
                    "bf16": "bf16" in kernel.asm["ttir"],
                    "shared": metadata.shared,
                    "shared_limit": _SHARED[metadata.target.arch],
                    "stack_bytes": stack_bytes(kernel.asm["cubin"]),
                    "products": sorted(".".join(found) for found in _PRODUCT.findall(ptx)),
                    "contracts": metadata.enable_fp_fusion,
                    "overlap": kwargs["OVERLAP"],
                    "waits": bool(wait),
                    "launch_pdl": metadata.launch_pdl,
                    "memory_before_wait": len(_MEMORY.findall(before_wait)) if wait else 0,
                    "arrives_in_order": _arrives_in_order(kernel.asm["ttir"]),
                }
            )
        )
        return kernel

    JITFunction.run = compile_only


def _arrives_in_order(ttir: str) -> bool:
    before, arrival, _ = ttir.partition("tt.atomic_rmw add, acq_rel")
    return bool(arrival) and "barrier" in before[before.rfind("tt.store") :]


def compile_attention(num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, *, overlap: bool) -> None:
    q = torch.zeros(4, num_heads, head_dim, dtype=dtype)
    kv = torch.zeros(2, 8, num_kv_heads, BLOCK_SIZE, head_dim, dtype=dtype)
    tables, lens, starts = torch.zeros(4, 16, dtype=torch.int32), *torch.zeros(2, 5, dtype=torch.int32)
    workspace = DecodeWorkspace.allocate(
        max_rows=4, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, max_context=4096,
        num_sms=132, device=CPU, partitions=True,
    )  # fmt: skip
    exact_attention.paged_decode(q, kv, tables, lens[:4], q, scale=1.0, workspace=workspace, overlap=overlap)
    exact_attention.paged_prefill(q, kv, tables, starts, lens[:4], q, scale=1.0, max_query_len=100)


def compile_linears(
    width: int, num_outputs: int, dtype: torch.dtype, out_dtype: torch.dtype, *, has_bias: bool, overlap: bool
) -> None:
    weight, bias = torch.zeros(num_outputs, width, dtype=dtype), torch.zeros(num_outputs, dtype=dtype)
    for num_rows in (1, 65, 600):
        x, out = torch.zeros(num_rows, width, dtype=dtype), torch.zeros(num_rows, num_outputs, dtype=out_dtype)
        exact_linear.linear(x, weight, bias if has_bias else None, out, overlap=overlap)


def main() -> None:
    report_compilations()
    bf16, fp32 = torch.bfloat16, torch.float32
    for arch in (90, 86, 80):
        driver.set_active(Target(arch))
        for module in (exact_attention, exact_linear):
            module.shared_bytes = lambda device, arch=arch: _SHARED[arch]
        compile_attention(16, 8, 128, bf16, overlap=arch == 90)
        if arch != 80:
            compile_linears(1024, 1024, bf16, bf16, has_bias=False, overlap=arch == 90)
        if arch != 86:
            compile_linears(1024, 6144, bf16, bf16, has_bias=True, overlap=arch == 90)
    driver.set_active(Target(90))
    for module in (exact_attention, exact_linear):
        module.shared_bytes = lambda device: _SHARED[90]
    compile_attention(9, 3, 64, bf16, overlap=False)
    compile_attention(8, 2, 256, bf16, overlap=False)
    compile_attention(16, 8, 128, fp32, overlap=True)
    compile_linears(80, 4000, bf16, fp32, has_bias=False, overlap=False)
    compile_linears(1024, 1024, fp32, fp32, has_bias=False, overlap=True)


if __name__ == "__main__":
    sys.exit(main())
