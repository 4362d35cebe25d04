"""Compiles the elementwise, sampling and step-state kernels for sm_90 and sm_80, a line of JSON each. A program: Triton
must not interpret.

The kernels' own callers launch them here, on CPU tensors and with a driver that only says which device to compile for,
so that what is compiled is what a launch would specialize.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from pagewire.wire.columns import ROW_WORDS
from pagewire.wire.logits import MAX_NAMED_IDS
from pagewire.worker.cuda.plan_packer import packed_capacity
from pagewire.worker.cuda.slot_state import SlotLayout
from pagewire.worker.cuda.step_buffers import StepBuffers, StepShape
from pagewire.worker.kernels.contract import SEQ_FIELDS
from pagewire.worker.kernels.controls import ControlLayout
from pagewire.worker.kernels.triton import elementwise, logprobs, processors, sampling, step_state
from pagewire.worker.kernels.workspaces import CHANGED_FIELDS, ChangedRows, LogprobsWorkspace, SamplingWorkspace
from pagewire.worker.slots.columns import SlotLimits

_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
NUM_ROWS = 16
VOCAB_SIZE = 151_936
CPU = torch.device("cpu")


WAIT = "griddepcontrol.wait"


class Target:
    """What Triton asks of a driver before it has compiled."""

    def __init__(self, arch: int) -> None:
        self._arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._arch, 32)

    def get_current_device(self) -> int:
        return self._arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return CPU


def stack_bytes(cubin: bytes) -> int:
    """Memory per thread for what the registers did not hold."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run(
            [_CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return sum(int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", report))


def sources_of_loads(ptx: str) -> set[int]:
    """The kernel's parameters that addresses of loads from global memory follow from."""
    sources: dict[str, set[int]] = {}
    found: set[int] = set()
    for line in ptx.splitlines():
        line = re.sub(r"^\s*(@!?%p\d+\s+)?", "", line)
        names = re.findall(r"%\w+", line)
        if parameter := re.match(r"ld\.param\S*\s+(%\w+), \[\w*param_(\d+)\]", line):
            sources[parameter[1]] = {int(parameter[2])}
        elif line.startswith("ld.global"):
            for name in re.findall(r"%\w+", line[line.rindex("[") :]):
                found |= sources.get(name, set())
        elif names:
            sources[names[0]] = sources.get(names[0], set()).union(*(sources.get(name, set()) for name in names[1:]))
    return found


def report_compilations() -> None:
    launch = JITFunction.run

    def compile_only(function: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = launch(function, *args, grid=grid, warmup=True, **kwargs)
        metadata = kernel.metadata
        before_wait, wait, _ = kernel.asm["ptx"].partition(WAIT)
        print(
            json.dumps(
                {
                    "name": function.__name__,
                    "arch": metadata.target.arch,
                    "shared": metadata.shared,
                    "stack_bytes": stack_bytes(kernel.asm["cubin"]),
                    "bf16": "bf16" in kernel.asm["ttir"],
                    "fused": bool(re.search(r"\bfma\.", kernel.asm["ptx"])) or metadata.enable_fp_fusion,
                    "overlap": kwargs.get("OVERLAP", False),
                    "waits": bool(wait),
                    "launch_pdl": metadata.launch_pdl,
                    "stores_before_wait": len(re.findall(r"\bst\.global", before_wait)) if wait else 0,
                    "sources_before_wait": sorted(sources_of_loads(before_wait)) if wait else [],
                }
            )
        )
        return kernel

    JITFunction.run = compile_only


def compile_elementwise(
    width: int, inner: int, num_heads: int, num_kv_heads: int, head_dim: int, *, overlap: bool
) -> None:
    def values(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.bfloat16)

    indices_T = torch.zeros(NUM_ROWS, dtype=torch.int64)
    x_TE, weight_E, delta_TE, out_TE = torch.zeros(NUM_ROWS, width), torch.zeros(width), *values(2, NUM_ROWS, width)
    elementwise.start_rms_norm(delta_TE, x_TE, weight_E, 0.1, out_TE, overlap=overlap)
    elementwise.add_rms_norm(x_TE, delta_TE, weight_E, 0.1, out_TE, overlap=overlap)
    elementwise.silu_mul(values(NUM_ROWS, 2 * inner), values(NUM_ROWS, inner), overlap=overlap)
    elementwise.rotate_and_store(
        values(NUM_ROWS, (num_heads + 2 * num_kv_heads) * head_dim),
        torch.zeros(num_heads + num_kv_heads, head_dim),
        0.1,
        torch.zeros(64, head_dim),
        indices_T,
        indices_T,
        values(2, 4, num_kv_heads, 16, head_dim),
        overlap=overlap,
    )


def compile_sampling(vocab_size: int, dtype: torch.dtype) -> None:
    logits_SV = torch.zeros(NUM_ROWS, vocab_size, dtype=dtype)
    floats_S, ints_S = (torch.zeros(NUM_ROWS, dtype=kind) for kind in (torch.float32, torch.int32))
    sampling_SP = torch.zeros(NUM_ROWS, ROW_WORDS, dtype=torch.int32)
    workspace = SamplingWorkspace.allocate(NUM_ROWS, vocab_size, CPU)
    sampling.sample(logits_SV, sampling_SP, ints_S, ints_S, workspace=workspace)
    top, named = torch.zeros(NUM_ROWS, 20), torch.zeros(NUM_ROWS, MAX_NAMED_IDS)
    logprobs.logprobs(
        logits_SV, ints_S, ints_S, named.int(), floats_S, named, top.int(), top,
        workspace=LogprobsWorkspace.allocate(NUM_ROWS, vocab_size, CPU),
    )  # fmt: skip
    slots = SlotLayout(NUM_ROWS, 64).allocate(CPU)
    rows = ChangedRows.allocate(NUM_ROWS, NUM_ROWS, ControlLayout(vocab_size, 4096), CPU)
    changed_CF = torch.zeros(NUM_ROWS, CHANGED_FIELDS, dtype=torch.int32)
    for has_masks in (False, True):
        processors.process(logits_SV, changed_CF, slots, rows, has_masks=has_masks)
    processors.finish_changed(changed_CF, ints_S, ints_S, slots, rows)


def compile_step_state(max_rows: int) -> None:
    limits = SlotLimits(
        max_num_seqs=NUM_ROWS,
        max_model_len=4096,
        max_num_batched_tokens=256,
        block_size=64,
        num_blocks=1024,
        vocab_size=VOCAB_SIZE,
    )
    slots = SlotLayout.of(limits).allocate(CPU)
    shape = StepShape.of_decodes(NUM_ROWS, limits.max_model_len)
    step = StepBuffers(limits, packed_capacity(limits), CPU).tensors(shape)
    ints_S = torch.zeros(NUM_ROWS, dtype=torch.int32)
    seqs_BQ = torch.zeros(NUM_ROWS, SEQ_FIELDS, dtype=torch.int32)
    step_state.apply_changes(slots, ints_S, ints_S)
    step_state.prepare_step(slots, seqs_BQ, ints_S, step, block_size=limits.block_size, max_rows=max_rows)
    step_state.finish_step(slots, seqs_BQ, ints_S)


def main() -> None:
    report_compilations()
    for arch in (90, 80):
        driver.set_active(Target(arch))
        compile_elementwise(1024, 3072, 16, 8, 128, overlap=arch == 90)
        compile_elementwise(5120, 25_600, 9, 3, 80, overlap=False)
        compile_sampling(VOCAB_SIZE if arch == 90 else 512, torch.bfloat16)
        compile_step_state(1 if arch == 90 else 256)
    compile_sampling(VOCAB_SIZE, torch.float32)


if __name__ == "__main__":
    sys.exit(main())
