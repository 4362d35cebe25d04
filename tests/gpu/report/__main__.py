"""`python tests/gpu/report [--dry-run] [--out DIR]`: all equalities and speeds of a GPU machine, in under nine minutes.

Writes gpu.json and gpu.md into DIR. Exits with 0 where everything held, 1 where something did not, 2 where there is no
GPU to run on. `tests/gpu/run.sh` makes the environment and starts this.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import msgspec
from gpu.report.budget import DRY_STAGES, GPU_STAGES, Budget
from gpu.report.checks import PartResult
from gpu.report.results import read_results
from gpu.report.writing import JSON_NAME, MARKDOWN_NAME, markdown, report

from pagewire.client.bench import environment

_GPU_TOTAL_S = 495.0
_DRY_TOTAL_S = 115.0
_HAS_GPU = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 1)"


def main() -> int:
    """See above."""
    parser = argparse.ArgumentParser(prog="tests/gpu/run.sh", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU: the course of things alone")
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder for the report (gpu-report)")
    args = parser.parse_args()
    begin_s = time.monotonic()
    if not args.dry_run and subprocess.run([sys.executable, "-c", _HAS_GPU], check=False).returncode:
        print("tests/gpu/run.sh: torch finds no CUDA device; --dry-run runs without one", file=sys.stderr)
        return 2
    environ = dict(os.environ)
    # Kernels are compiled where there is a device to run them, and interpreted where there is none.
    environ.pop("TRITON_INTERPRET", None)
    if args.dry_run:
        environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    args.out.mkdir(parents=True, exist_ok=True)
    budget = Budget(_DRY_TOTAL_S if args.dry_run else _GPU_TOTAL_S)
    with tempfile.TemporaryDirectory(prefix="pagewire-gpu-") as folder:
        file = Path(folder) / "results"
        for stage in DRY_STAGES if args.dry_run else GPU_STAGES:
            print(f"== {', '.join(part for share in stage for part in share.parts)}", flush=True)
            budget.run_stage(stage, file, args.dry_run, environ)
        results = read_results(file)
    seconds = time.monotonic() - begin_s
    about = _about(results)
    whole = report(results, about, args.dry_run, seconds)
    (args.out / JSON_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(whole)) + b"\n")
    table = markdown(results, about, args.dry_run)
    (args.out / MARKDOWN_NAME).write_text(table, encoding="utf-8")
    print(f"\n{table}\n{seconds:.0f} s; written to {args.out / JSON_NAME} and {args.out / MARKDOWN_NAME}")
    print("everything held" if whole["held"] else "NOT everything held")
    return 0 if whole["held"] else 1


def _about(results: Sequence[PartResult]) -> dict[str, object]:
    card = next((result.figures for result in results if result.part == "card"), {})
    return {
        "card": card.get("name", "unknown card"),
        "torch": card.get("torch", "unknown"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": environment.hardware(),
        "versions": environment.versions(),
    }


if __name__ == "__main__":
    sys.exit(main())
