"""Collectives, by which ranks tell each other tensors while the model runs: a seam over torch.distributed.

Tensors of known shape and dtype alone cross it. torch's object collectives, which unpickle what a peer sends, are not
used, here or anywhere. The process group is an object of its own: torch's default group, a global, is never set.

Every rank gets the same bits from both operations: Gloo's and NCCL's all-reduce compute each value on one rank and copy
it to the others, and gathering copies. So all ranks draw the same token from the same logits.
"""

import re
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch.distributed import ProcessGroup, Store, Work  # type: ignore[attr-defined]  # exported, but for the type stubs
from torch.distributed import distributed_c10d as c10d

from pagewire.worker.loop import RankLost

COLLECTIVE_TIMEOUT_S = 300.0
"""How long one operation may wait for a rank that is still there: no two ranks are further apart than a step."""


class Collectives(Protocol):
    """Operations that every rank calls, in the same order, with the same shapes. They raise RankLost; nothing can be
    done with the group then."""

    world_size: int

    def all_reduce(self, x: torch.Tensor) -> None:
        """Replaces x, contiguous, by its sum over all ranks, in its dtype."""

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """[...], contiguous → [N, ...], a new tensor: every rank's x."""


class GroupCollectives:
    """Over a process group of torch's. On a GPU, operations run on the current stream, without events to and from one
    of NCCL's own, and can be captured in a graph. Nothing is raised there for a rank that is lost while a graph runs:
    its process's end tells, or COLLECTIVE_TIMEOUT_S."""

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group
        self.world_size: int = group.size()
        self._reduce_options = c10d.AllreduceOptions()
        self._gather_options = c10d.AllgatherOptions()  # type: ignore[attr-defined]
        for options in (self._reduce_options, self._gather_options):
            options.asyncOp = False

    def all_reduce(self, x: torch.Tensor) -> None:
        try:
            _finish(self._group.allreduce([x], self._reduce_options))
        except RuntimeError as error:
            raise RankLost(_in_short(error)) from error

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.new_empty((self.world_size, *x.shape))
        # As one tensor of N times as many rows, which is all that Gloo takes.
        try:
            _finish(self._group._allgather_base(parts.flatten(0, 1), x, self._gather_options))
        except RuntimeError as error:
            raise RankLost(_in_short(error)) from error
        return parts


def _finish(work: Work | None) -> None:
    """On the current stream there may be no work to wait for."""
    if work is not None:
        work.wait()


def _in_short(error: RuntimeError) -> str:
    """What torch says, without the place in its sources that it may begin with and the advice that may follow."""
    said = re.sub(r"^\[[^\]]*\] ", "", str(error).partition("\n")[0])
    return f"another rank is gone or takes too long: {said.partition('. ')[0]}"


def least(collectives: Collectives, value: int, device: torch.device) -> int:
    """The least of the ranks' values. Waits for all of them; for start-up alone."""
    return int(collectives.all_gather(torch.tensor([value], device=device)).min().item())


def gloo_collectives(store: Store, rank: int, world_size: int, host: str) -> GroupCollectives:
    """For ranks on CPUs. Listens on `host`, an address of this machine. Raises RuntimeError where a rank does not
    come."""
    gloo: Any = c10d.ProcessGroupGloo  # its type stub lacks what follows
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=host)]
    options._timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    backend = gloo(store, rank, world_size, options)
    return _over(backend, ProcessGroup.BackendType.GLOO, torch.device("cpu"), store, rank, world_size)


def nccl_collectives(store: Store, rank: int, world_size: int, device: torch.device) -> GroupCollectives:
    """For ranks on GPUs, one each. Raises RuntimeError where a rank does not come."""
    nccl: Any = c10d.ProcessGroupNCCL
    options = nccl.Options()
    options._timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    backend = nccl(store, rank, world_size, options)
    collectives = _over(backend, ProcessGroup.BackendType.NCCL, device, store, rank, world_size)
    # NCCL connects at its first operation, which must not happen while a graph is captured.
    collectives.all_reduce(torch.zeros(1, device=device))
    collectives.all_gather(torch.zeros(1, device=device))
    torch.cuda.synchronize(device)
    return collectives


def _over(
    backend: Any, kind: ProcessGroup.BackendType, device: torch.device, store: Store, rank: int, world_size: int
) -> GroupCollectives:
    group = ProcessGroup(store, rank, world_size)
    group._set_default_backend(kind)
    group._register_backend(device, kind, backend)
    return GroupCollectives(group)
