"""The CUDA worker's steps on the CPU: the reference kernels in place of Triton's, and captures that call their work
anew."""

from collections.abc import Callable

import torch
from support.host_device import CPU, EagerCapture, HostTimeline

from pagewire.wire.model import DecoderConfig, ModelSpec
from pagewire.wire.plan import StepPlan, StepResult
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.attention.paged_torch import PagedTorchAttention
from pagewire.worker.attention.triton import TritonAttention
from pagewire.worker.cuda.graphs import GraphCapture, capture_steps
from pagewire.worker.cuda.kernel_ops import KernelOps
from pagewire.worker.cuda.runner import CudaRunner
from pagewire.worker.cuda.special_work import SpecialWork
from pagewire.worker.cuda.step_work import Model, StepMemory, StepWork
from pagewire.worker.cuda.timeline import StepTimes, Timeline
from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.kernels.sets import reference_kernels
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.slots.columns import SlotLimits
from pagewire.worker.weights.build import load_decoder

REFERENCE = reference_kernels()


def tiny_config(vocab_size: int, tied: bool = False) -> DecoderConfig:
    """A Qwen3 of two layers."""
    return DecoderConfig(
        architecture="qwen3",
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=vocab_size,
        max_position_embeddings=512,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        tie_word_embeddings=tied,
        qk_norm=True,
        qkv_bias=False,
    )


def tiny_spec(config: DecoderConfig) -> ModelSpec:
    """Random weights."""
    return ModelSpec(
        name="tiny",
        decoder=config,
        weights_format="random",
        weights_files=(),
        weights_digest="",
        random_seed=5,
        eos_token_ids=(),
        tokenizer_file=None,
    )


def plain_decoder(config: DecoderConfig) -> Decoder:
    """For `CpuRunner`, in fp32."""
    return load_decoder(tiny_spec(config), "float32", PagedTorchAttention(), lambda stage, fraction: None)


def device_decoder(
    decoder: Decoder,
    limits: SlotLimits,
    kernels: Kernels = REFERENCE,
) -> Decoder:
    """The same weights, with the parts that a device uses; by the reference kernels, if no others are given."""
    ops = KernelOps(
        decoder.config,
        torch.float32,
        CPU,
        kernels,
        max_rows=limits.max_num_batched_tokens,
        max_positions=limits.max_model_len,
    )
    attention = TritonAttention(
        decoder.config,
        kernels,
        CPU,
        max_num_seqs=limits.max_num_seqs,
        max_model_len=limits.max_model_len,
        num_sms=1,
    )
    return Decoder(decoder.config, decoder.weights, decoder.rope, attention, ops)


class CountingModel:
    """Every token is followed by the next number."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def forward(self, batch: Batch, kv: KVCache) -> torch.Tensor:
        ids = batch.input_ids_T[batch.sample_rows_S]
        return torch.zeros(len(ids), self._vocab_size).scatter_(1, (ids[:, None] + 1) % self._vocab_size, 1.0)


def make_runner(
    model: Model,
    kv: KVCache,
    limits: SlotLimits,
    *,
    kernels: Kernels = REFERENCE,
    capture: GraphCapture | None = None,
    eager: bool = False,
    timeline: Timeline | None = None,
    watch: Callable[[StepTimes], None] = lambda times: None,
    on_error: Callable[[str, Exception], None] | None = None,
    spec: ModelSpec | None = None,
) -> CudaRunner:
    """A runner on the CPU with epoch 1 open; `eager` as --enforce-eager."""
    memory = StepMemory.allocate(limits, CPU)
    work = StepWork(model=model, kernels=kernels, kv=kv, memory=memory)
    graphs = None if eager else capture_steps(work, memory.buffers, capture or EagerCapture(), limits)
    runner = CudaRunner(
        limits=limits,
        buffers=memory.buffers,
        work=work,
        special=SpecialWork(kernels, memory, on_error or _no_error),
        spec=spec,
        graphs=graphs,
        timeline=timeline or HostTimeline(),
        watch=watch,
    )
    runner.begin(1)
    return runner


def run(runner: CudaRunner, plan: StepPlan) -> StepResult:
    """Submit one plan and take its result at once."""
    runner.submit(plan)
    result = runner.take()
    assert result is not None
    assert (result.epoch, result.step_id) == (plan.epoch, plan.step_id)
    return result


def _no_error(what: str, error: Exception) -> None:
    raise AssertionError(what) from error
