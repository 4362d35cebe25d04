"""Compiles the attention kernels for sm_90 and sm_86, a line of JSON each. A program: Triton must not interpret."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from pagewire.worker.kernels.triton import paged_decode, paged_prefill
from pagewire.worker.kernels.workspaces import MAX_SPLITS, SPLIT_TOKENS

_SHARED = {90: 227 << 10, 86: 99 << 10}
_ITEMSIZE = {"bf16": 2, "fp32": 4}


def compile_kernel(function: object, constants: dict[str, int | bool], types: dict[str, str], arch: int, tile: object):
    names = function.arg_names
    # As at a launch: pointers and strides are multiples of 16.
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if name not in constants and (types[name].startswith("*") or name in ("q_stride", "value_offset"))
    }
    source = ASTSource(
        fn=function,
        signature={name: "constexpr" if name in constants else types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def spilled_bytes(ptx: str, arch: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        name = "sm_90a" if arch == 90 else f"sm_{arch}"
        command = [get_ptxas(arch).path, "-v", "--gpu-name", name, file, "-o", Path(folder) / "kernel.cubin"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(int(size) for size in re.findall(r"(\d+) bytes spill stores", report))


def arrives_in_order(ttir: str) -> bool:
    """Whether a barrier of our own stands between a program's stores and its arrival, and the arrival orders memory.
    Not in PTX: there the compiler's own barriers for shared memory may stand in the same place."""
    before, arrival, _ = ttir.partition("tt.atomic_rmw add, acq_rel")
    return bool(arrival) and "barrier" in before[before.rfind("tt.store") :]


def compile_attention(name: str, heads: tuple[int, int, int], block_size: int, dtype: str, arch: int) -> None:
    K, G, D = heads
    padded_d, padded_g = triton.next_power_of_2(D), triton.next_power_of_2(G)
    element = f"*{dtype}"
    types = dict.fromkeys(("q", "kv", "out"), element)
    types |= dict.fromkeys(("tables", "context_lens", "query_starts", "arrivals"), "*i32")
    types |= dict.fromkeys(("partial_out", "partial_lse"), "*fp32")
    types |= dict.fromkeys(("q_stride", "table_stride", "num_programs"), "i32") | {
        "value_offset": "i64",
        "qk_scale": "fp32",
    }
    constants: dict[str, int | bool] = {"K": K, "G": G, "P": block_size, "D": D, "PADDED_D": padded_d, "UPCAST": False}
    if name == "decode":
        tile = paged_decode.decode_tile(D, _ITEMSIZE[dtype], _SHARED[arch])
        constants |= {
            "PADDED_G": padded_g,
            "ROWS": max(16, padded_g),
            "TILE": tile.tokens,
            "LEAST_TOKENS": paged_decode._LEAST_TOKENS,
            "SPLIT_TOKENS": SPLIT_TOKENS,
            "MAX_SPLITS": MAX_SPLITS,
            "SPLITS": MAX_SPLITS,
            "PADDED_SPLITS": MAX_SPLITS,
            "OVERLAP": arch == 90,
            "SPLITS_AT_ONCE": max(1, min(MAX_SPLITS, paged_decode._COMBINED_VALUES // (padded_g * padded_d))),
        }
        kernel = compile_kernel(paged_decode._paged_decode_kernel, constants, types, arch, tile)
    else:
        tile = paged_prefill.prefill_tile(D, _ITEMSIZE[dtype], _SHARED[arch])
        constants |= {"ROWS": max(tile.rows, padded_g), "TILE": tile.tokens}
        kernel = compile_kernel(paged_prefill._paged_prefill_kernel, constants, types, arch, tile)
    ptx = kernel.asm["ptx"]
    report = {
        "name": name,
        "arch": arch,
        "dtype": dtype,
        "heads": heads,
        "block_size": block_size,
        "shared": kernel.metadata.shared,
        "shared_limit": _SHARED[arch],
        "tile_bytes": 2 * tile.tokens * padded_d * _ITEMSIZE[dtype],
        "spilled_bytes": spilled_bytes(ptx, arch),
        "tensor_core_products": ptx.count("wgmma.mma_async") + ptx.count("mma.sync"),
        "asynchronous_copies": ptx.count("cp.async.cg"),
        "arrives_in_order": arrives_in_order(kernel.asm["ttir"]),
    }
    print(json.dumps(report))


def main() -> None:
    for name in ("decode", "prefill"):
        for heads, block_size in (((8, 2, 128), 64), ((8, 2, 128), 16), ((3, 3, 64), 256), ((1, 5, 80), 128)):
            compile_attention(name, heads, block_size, "bf16", 90)
        compile_attention(name, (2, 4, 256), 64, "bf16", 90)
        compile_attention(name, (8, 2, 128), 64, "bf16", 86)
        compile_attention(name, (8, 2, 128), 64, "fp32", 90)


if __name__ == "__main__":
    sys.exit(main())
