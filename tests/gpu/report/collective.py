"""The ranks' operations on one device alone, launched and captured: a group of one rank, which is all that one device
can show of NCCL."""

from __future__ import annotations

import torch
from gpu.report.checks import Check, Skipped
from torch.distributed import HashStore  # type: ignore[attr-defined]

from pagewire.worker.cuda.graphs import CudaGraphCapture
from pagewire.worker.parallel.collectives import nccl_collectives


def run(device: torch.device) -> Check:
    """Values that differ from what a group of one must give. Raises Skipped without NCCL."""
    if device.type != "cuda" or not torch.distributed.is_nccl_available():
        raise Skipped("no NCCL")
    collectives = nccl_collectives(HashStore(), 0, 1, device)
    x, y = torch.zeros(2, 1 << 20, device=device)
    gathered = torch.zeros(1, 1 << 20, device=device)

    def work() -> None:
        y.copy_(x * 2)
        collectives.all_reduce(y)
        y.add_(1)
        gathered.copy_(collectives.all_gather(y))

    launch = CudaGraphCapture(device).capture(work)
    num_differing = 0
    for value in range(20):
        x.fill_(value)
        launch()
        num_differing += int((gathered != 2 * value + 1).sum().item())
    return Check(
        what="a captured all-reduce and all-gather of one rank: values that differ",
        seen=num_differing,
        unit="values",
        relation="at most",
        limit=0,
    )
