"""Loads a launch's model onto a CUDA device, alone or as one rank of several, and brings the device up.

The only module besides `meter`, `timeline` and `recorder` that calls CUDA's own functions.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import torch

from pagewire.wire.launch import WorkerLaunch
from pagewire.wire.sharding import local_decoder
from pagewire.worker.attention.base import AttentionBackend, block_size_of
from pagewire.worker.attention.ladder import AttentionNeeds, CudaCard, attention_ladder, choose_attention
from pagewire.worker.cpu_info import usable_cores
from pagewire.worker.cuda.bring_up import BroughtUp, CacheTerms, DeviceKit, LoadedModel, bring_up
from pagewire.worker.cuda.meter import CudaMeter
from pagewire.worker.cuda.recorder import CudaGraphRecorder
from pagewire.worker.cuda.step_work import StepKernels
from pagewire.worker.cuda.timeline import CudaTimeline
from pagewire.worker.cuda.waker import Waker
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.model.linear import TorchLinear, TorchLinears
from pagewire.worker.model.ops import DecoderOps
from pagewire.worker.model.triton_ops import TritonOps, triton_ops_kernels
from pagewire.worker.model.weights import TORCH_DTYPES, load_decoder
from pagewire.worker.parallel.ranks import RankStart
from pagewire.worker.slot_columns import SlotLimits

_MAX_LOAD_THREADS = 8
"""Threads that read and convert weights; copying them to the device is one queue in any case."""

Progress = Callable[[str, float], None]


class CudaUnavailable(Exception):
    """This machine or installation cannot run on a CUDA device; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedCuda:
    """A device that is ready, and what the engine is told about it."""

    launch: WorkerLaunch
    """With what the group and the attention backend decided."""
    brought_up: BroughtUp
    attention_backend: str
    linear_backend: str


def load_cuda(
    launch: WorkerLaunch, progress: Progress, on_rank_lost: Callable[[str], None], wake: Callable[[], None]
) -> LoadedCuda:
    """`wake` is called from a thread of its own after every step of the runner.

    Raises CudaUnavailable; AttentionUnavailable; RendezvousError; OSError and ValueError, with the sum in its message
    where the device has no room; torch.OutOfMemoryError where not even the weights fit.
    """
    device = _device(launch.rank)
    kernels = _kernels()
    meter = CudaMeter(device)
    before_model_bytes = meter.total() - meter.free()
    spec, dtype = launch.model, TORCH_DTYPES[launch.dtype]
    config = local_decoder(spec.decoder, launch.world_size)
    attention = _attention(launch, device)
    launch = msgspec.structs.replace(launch, block_size=block_size_of(attention, launch.block_size))
    limits = _limits(launch)
    ops = TritonOps(
        config,
        dtype,
        device,
        triton_ops_kernels(),
        max_rows=limits.max_num_batched_tokens,
        max_positions=limits.max_model_len,
    )
    allocated_before = meter.allocated()
    launch, decoder = _decoder(launch, attention, ops, device, progress, on_rank_lost)
    loaded = LoadedModel(
        model=decoder,
        config=config,
        dtype=dtype,
        before_model_bytes=before_model_bytes,
        weights_bytes=meter.allocated() - allocated_before,
    )
    kit = DeviceKit(
        device=device,
        kernels=kernels,
        meter=meter,
        timeline=CudaTimeline(device),
        new_recorder=lambda: CudaGraphRecorder(device),
    )
    terms = CacheTerms(
        gpu_memory_utilization=launch.gpu_memory_utilization,
        kv_cache_bytes=launch.kv_cache_bytes,
        enforce_eager=launch.enforce_eager,
    )
    return LoadedCuda(
        launch=launch,
        brought_up=bring_up(kit, loaded, limits, terms, Waker(wake).watch, progress),
        attention_backend=attention.name,
        linear_backend=decoder.linear_backend,
    )


def _device(rank: int) -> torch.device:
    """This rank's device, made the current one: the ranks of a host take its devices in turn."""
    if not torch.cuda.is_available():
        reason = "is built without CUDA" if torch.version.cuda is None else "finds no CUDA device"
        raise CudaUnavailable(f"device cuda: torch {torch.__version__} {reason}")
    device = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _kernels() -> StepKernels:
    try:
        from pagewire.worker.triton_kernels import step_state
        from pagewire.worker.triton_kernels.sampling import sample
    except ImportError as error:
        raise CudaUnavailable(f"device cuda needs Triton ({error}): pip install 'pagewire[cuda]'") from error
    return StepKernels(state=step_state, sample=sample)


def _attention(launch: WorkerLaunch, device: torch.device) -> AttentionBackend:
    card = CudaCard.of(device)
    needs = AttentionNeeds(
        config=local_decoder(launch.model.decoder, launch.world_size),
        dtype=TORCH_DTYPES[launch.dtype],
        device=device,
        max_num_seqs=launch.max_num_seqs,
        max_model_len=launch.max_model_len,
        block_size=launch.block_size,
    )
    return choose_attention(attention_ladder(card, importlib.import_module), launch.attention_backend, needs, card)


def _limits(launch: WorkerLaunch) -> SlotLimits:
    """Before the number of blocks is known."""
    assert launch.block_size is not None
    return SlotLimits(
        max_num_seqs=launch.max_num_seqs,
        max_model_len=launch.max_model_len,
        max_num_batched_tokens=launch.max_num_batched_tokens,
        block_size=launch.block_size,
        num_blocks=1,
        vocab_size=launch.model.decoder.vocab_size,
    )


def _decoder(
    launch: WorkerLaunch,
    attention: AttentionBackend,
    ops: DecoderOps,
    device: torch.device,
    progress: Progress,
    on_rank_lost: Callable[[str], None],
) -> tuple[WorkerLaunch, Decoder]:
    """The decoder, its weights on the device; and the launch with its group's incarnation."""
    linears = TorchLinears(TorchLinear, device)
    num_threads = launch.num_threads or min(_MAX_LOAD_THREADS, usable_cores())
    spec = launch.model
    if launch.group is None:
        return launch, load_decoder(spec, launch.dtype, attention, progress, ops, linears, num_threads)
    start = RankStart(launch, launch.group, progress, on_rank_lost)
    launch = msgspec.structs.replace(launch, incarnation=start.incarnation)
    local = start.load(spec, launch.dtype, attention, progress, ops, linears, num_threads)
    collectives = start.join(f"cuda {attention.name}", device, progress)
    return launch, start.parallel(local, spec.decoder.vocab_size, collectives)
