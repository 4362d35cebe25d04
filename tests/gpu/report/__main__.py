"""`python tests/gpu/report [--dry-run] [--out DIR] [--only PART...] [--peer]`: all equalities and speeds of a GPU
machine, in under seven minutes.

Writes gpu.json, gpu.md and gpu.log (what the parts said) into DIR, the first two anew with every result. Exits with 0
where everything held, 1 where something did not, 2 where there is no GPU to run on. `tests/gpu/run.sh` brings what it
needs and starts it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# As in part.py.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[2]))

from gpu.report.budget import (
    DRY_STAGES,
    EXACT_STAGES,
    GPU_STAGES,
    PEER_STAGES,
    SWEEP_STAGES,
    Budget,
    Course,
    only,
)
from gpu.report.live import LiveReport
from gpu.report.part import PARTS
from gpu.report.writing import MARKDOWN_NAME

LOG_NAME = "gpu.log"
TOTAL_S = 410.0
_DRY_TOTAL_S = 270.0
_HAS_GPU = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 1)"


def main() -> int:
    """See above."""
    parser = argparse.ArgumentParser(prog="tests/gpu/run.sh", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU: the course of things alone")
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder for the report (gpu-report)")
    parser.add_argument("--spent", type=float, default=0.0, metavar="S", help="seconds of the run's time spent before")
    parser.add_argument("--limit", type=float, default=TOTAL_S, metavar="S", help="seconds of the whole run (410)")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART", help="these parts, and the card")
    parser.add_argument("--peer", action="store_true", help="a comparison with transformers, and nothing else")
    parser.add_argument("--sweep", action="store_true", help="attention cut in other ways, and nothing else")
    args = parser.parse_args()
    stages = DRY_STAGES if args.dry_run else GPU_STAGES
    if args.peer or args.sweep:
        stages = PEER_STAGES if args.peer else SWEEP_STAGES
    if args.only:
        every = GPU_STAGES + EXACT_STAGES + SWEEP_STAGES + PEER_STAGES
        stages = only(stages if args.dry_run else every, args.only)
    spent_s: float = args.spent
    begin_s = time.monotonic() - spent_s

    def seconds() -> float:
        return time.monotonic() - begin_s

    if not args.dry_run and subprocess.run([sys.executable, "-c", _HAS_GPU], check=False).returncode:
        print("tests/gpu/run.sh: torch finds no CUDA device; --dry-run runs without one", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / LOG_NAME).write_bytes(b"")
    with tempfile.TemporaryDirectory(prefix="gpu-report-", ignore_cleanup_errors=True) as folder:
        course = Course(
            results=Path(folder) / "results",
            log=args.out / LOG_NAME,
            dry_run=args.dry_run,
            environ=environ_of(Path(folder), args.dry_run),
        )
        budget = Budget((_DRY_TOTAL_S if args.dry_run else args.limit) - seconds())
        with LiveReport(course.results, args.out, dry_run=args.dry_run, seconds=seconds) as live:
            for stage in stages:
                print(f"== {', '.join(part for share in stage for part in share.parts)}", flush=True)
                budget.run_stage(stage, course)
    print(f"\n{(args.out / MARKDOWN_NAME).read_text(encoding='utf-8')}\n{seconds():.0f} s; written to {args.out}")
    print("everything held" if live.whole["held"] else "NOT everything held")
    return 0 if live.whole["held"] else 1


def environ_of(folder: Path, dry_run: bool) -> dict[str, str]:
    """Of the parts. Caches are the run's own: a home may be missing or read-only, and every run compiles the same.
    Where TRITON_CACHE_DIR is set, compiled kernels are kept there for the next run. Kernels are compiled where there is
    a device to run them, and interpreted where there is none."""
    environ = {"TRITON_CACHE_DIR": str(folder / "triton"), **os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    environ |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    environ.pop("TRITON_INTERPRET", None)
    if dry_run:
        environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return environ


if __name__ == "__main__":
    sys.exit(main())
