"""Loading of device `cpu`: its kernels chosen, the model loaded alone or as one rank of several, KV in what memory is
left."""

from collections.abc import Callable

import msgspec
import torch

from pagewire.wire.launch import WorkerLaunch
from pagewire.wire.model import local_decoder
from pagewire.worker.attention.base import block_size_of
from pagewire.worker.attention.kv_cache import KVCache, plan_num_blocks
from pagewire.worker.cpu.kernels import CpuKernels, choose_kernels, kernels_of_attention
from pagewire.worker.cpu.runner import CpuRunner
from pagewire.worker.immediate import ImmediateRunner
from pagewire.worker.launch import LaunchError, LoadedDevice, Progress, hello_of, slot_limits
from pagewire.worker.linears.int8 import Int8Unavailable
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.native.library import NativeUnavailable
from pagewire.worker.native.machine import available_memory_bytes, usable_cores
from pagewire.worker.parallel.ranks import RankStart
from pagewire.worker.parallel.rendezvous import RendezvousError
from pagewire.worker.weights.build import TORCH_DTYPES, load_decoder


def load_cpu(launch: WorkerLaunch, progress: Progress, on_rank_lost: Callable[[str], None]) -> LoadedDevice:
    """Raises LaunchError, and whatever `progress` raises."""
    num_local_ranks = 1 if launch.group is None else launch.group.num_local_ranks
    num_threads = launch.num_threads or max(1, usable_cores() // num_local_ranks)
    dtype = TORCH_DTYPES[launch.dtype]
    try:
        local_config = local_decoder(launch.model.decoder, launch.world_size)
        wanted = kernels_of_attention(launch.attention_backend, launch.cpu_kernels)
        kernels = choose_kernels(local_config, dtype, num_threads, wanted, launch.quantization)
        block_size = block_size_of(kernels.attention, launch.block_size)
    except NativeUnavailable as error:
        asked = "cpu_kernels is native" if launch.cpu_kernels == "native" else "attention_backend is paged-native"
        raise LaunchError(f"{asked}: {error}") from error
    except Int8Unavailable as error:
        raise LaunchError(f"quantization is int8: {error}") from error
    except ValueError as error:
        raise LaunchError(str(error)) from error
    attention = kernels.attention
    if launch.exact_continuation and not attention.recomputes_exactly:
        raise LaunchError(f"exact_continuation is set, and attention_backend {attention.name} does not recompute so")
    # Ranks must agree on it, also where each took its backend's own.
    launch = msgspec.structs.replace(launch, block_size=block_size)
    try:
        launch, decoder, available_bytes = _decoder(launch, kernels, num_threads, progress, on_rank_lost)
        num_blocks = plan_num_blocks(
            decoder.config,
            block_size=block_size,
            dtype=dtype,
            max_num_seqs=launch.max_num_seqs,
            max_model_len=launch.max_model_len,
            kv_cache_bytes=launch.kv_cache_bytes,
            available_bytes=available_bytes,
            earlier_num_blocks=launch.earlier_num_blocks,
        )
        kv = KVCache(decoder.config, num_blocks, block_size, dtype)
        kv.commit_when_idle()
    except (OSError, ValueError, RendezvousError) as error:
        raise LaunchError(str(error)) from error
    limits = slot_limits(launch, block_size, num_blocks)
    hello = hello_of(
        launch,
        limits,
        weights_bytes=decoder.weights_bytes,
        kv_cache_bytes=kv.num_bytes,
        attention_backend=attention.name,
        linear_backend=decoder.linear_backend,
        recomputes_exactly=attention.recomputes_exactly,
        libraries=("numpy", "torch"),
    )
    # Between the kernels of one rank of a group, ranks add up their parts: nothing that the library could repeat.
    model = kernels.model(decoder) if launch.group is None else decoder
    runner = CpuRunner(model, kv, limits, kernels.sampler(limits.vocab_size), launch.model)
    return LoadedDevice(runner=ImmediateRunner(runner), hello=hello)


def _decoder(
    launch: WorkerLaunch,
    kernels: CpuKernels,
    num_threads: int,
    progress: Progress,
    on_rank_lost: Callable[[str], None],
) -> tuple[WorkerLaunch, Decoder, int]:
    """The decoder; before it the launch with its group's incarnation, behind it the bytes of memory to count on."""
    spec, attention = launch.model, kernels.attention
    if launch.group is None:
        decoder = load_decoder(spec, launch.dtype, attention, progress, kernels.ops, kernels.linears, num_threads)
        return launch, decoder, available_memory_bytes()
    start = RankStart(launch, launch.group, progress, on_rank_lost)
    launch = msgspec.structs.replace(launch, incarnation=start.incarnation)
    local = start.load(spec, launch.dtype, attention, progress, kernels.ops, kernels.linears, num_threads)
    device = torch.device("cpu")
    collectives = start.join(kernels.name, device, progress)
    decoder = start.parallel(local, spec.decoder.vocab_size, collectives)
    return launch, decoder, start.memory_share(available_memory_bytes(), collectives, device)
