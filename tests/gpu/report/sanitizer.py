"""Tiny steps under NVIDIA's compute-sanitizer, which sees every access outside what was allocated.

python tests/gpu/report/sanitizer.py      the steps themselves, as the sanitizer runs them
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

# As in part.py.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[2]))

from gpu.report.checks import Check, Skipped
from gpu.report.results import PartRecord

_NUM_STEPS = 25
_SHOWN = 1500
"""Characters of what the sanitizer says."""


def run(record: PartRecord) -> None:
    """The number of errors that it counts. Raises Skipped where it is not installed."""
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin:/opt/cuda/bin"
    )
    if tool is None:
        raise Skipped("no compute-sanitizer")
    # Torch's allocator takes large pieces, inside which any access is legal; without it each tensor is a piece.
    environ = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        [tool, "--tool", "memcheck", "--print-limit", "5", sys.executable, __file__],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    print(said[-20_000:])
    summary = re.search(r"ERROR SUMMARY: (\d+) error", said)
    if summary is None or "the steps are over" not in said:
        raise ValueError(f"status {done.returncode}: {said[-_SHOWN:]}")
    first = said.partition("========= ")[2]
    record.add(
        Check(
            what="errors that compute-sanitizer finds in tiny steps",
            seen=int(summary[1]),
            unit="errors",
            relation="at most",
            limit=0,
        ),
        first=first[:_SHOWN],
    )


def main() -> int:
    """Every kind of step of a tiny model, none captured: without torch's caching allocator nothing can be."""
    from support.device_runner import tiny_config, tiny_spec
    from support.plan_stream import LoadedStream
    from support.worker_process import sim_launch

    from pagewire.worker.cuda.platform import CudaPlatform
    from pagewire.worker.linears import skinny

    # The trial is captured; here the kernels are taken untried.
    skinny.trial = lambda *parts: ""  # type: ignore[assignment]
    launch = sim_launch(
        "ipc:///nowhere",
        device="cuda",
        dtype="float32",
        model=tiny_spec(tiny_config(vocab_size=100)),
        max_num_seqs=20,
        max_model_len=64,
        max_num_batched_tokens=96,
        block_size=16,
        attention_backend="triton",
        enforce_eager=True,
    )
    LoadedStream(launch, CudaPlatform()).check(0, _NUM_STEPS)
    print("the steps are over", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
