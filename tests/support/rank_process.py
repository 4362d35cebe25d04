"""One rank of a model, in a process of its own: python rank_process.py JOBS RANK WORLD_SIZE.

JOBS is a JSON file with a list of `RankJob`; the answers, a list of `RankAnswer`, go to stdout as JSON.
"""

import re
import sys
from pathlib import Path

import msgspec
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.batches import PagedDriver, greedy
from support.worker_process import sim_launch

from pagewire.wire.launch import CpuKernelKind, RankGroup
from pagewire.wire.model import ModelSpec, local_decoder
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.cpu.kernels import choose_kernels
from pagewire.worker.parallel.ranks import RankStart
from pagewire.worker.weights.build import load_decoder

CPU = torch.device("cpu")


class RankJob(msgspec.Struct):
    """A model to load, and a prompt to continue."""

    spec: ModelSpec
    store: str
    kind: CpuKernelKind
    prompt: list[int]
    num_tokens: int


class RankAnswer(msgspec.Struct):
    """What this rank drew, and what it took."""

    tokens: list[int]
    weights_bytes: int
    peak_bytes: int
    """By how much loading raised the most memory that the process ever held."""


def main() -> None:
    file, rank, world_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    jobs = msgspec.json.decode(Path(file).read_bytes(), type=list[RankJob])
    print(msgspec.json.encode([run(job, rank, world_size) for job in jobs]).decode())


@torch.inference_mode()
def run(job: RankJob, rank: int, world_size: int) -> RankAnswer:
    kernels = choose_kernels(local_decoder(job.spec.decoder, world_size), torch.float32, 1, job.kind)
    parts = kernels.attention, silent, kernels.ops, kernels.linears
    before = memory_bytes(reset_peak=True)
    if world_size == 1:
        decoder = load_decoder(job.spec, "float32", *parts)
    else:
        group = RankGroup(store=job.store, num_local_ranks=world_size, join_timeout_s=60)
        launch = sim_launch("ipc:///unused", model=job.spec, device="cpu", dtype="float32", group=group)
        launch = msgspec.structs.replace(launch, rank=rank, world_size=world_size)
        start = RankStart(launch, group, silent, print)
        decoder = start.load(job.spec, "float32", *parts, 1)
    peak_bytes = memory_bytes() - before
    if world_size > 1:
        collectives = start.join(kernels.name, CPU, silent)
        decoder = start.parallel(decoder, job.spec.decoder.vocab_size, collectives)
    driver = PagedDriver(decoder, KVCache(decoder.config, 8, 16, torch.float32))
    tokens = greedy(driver, 0, job.prompt, job.num_tokens) if job.num_tokens else []
    return RankAnswer(tokens, decoder.weights_bytes, peak_bytes)


def silent(stage: str, fraction: float) -> None:
    """No progress."""


def memory_bytes(reset_peak: bool = False) -> int:
    """The most memory that this process ever held, or has held since the last reset."""
    if reset_peak:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
