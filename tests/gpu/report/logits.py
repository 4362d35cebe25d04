"""Logits in bf16 by the device's own parts against an fp32 reference over the same weights, rounded to bf16 in both.

The reference is torch's operators in fp32 on the same device: what differs is the precision of what is computed, and
every kernel.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import torch
from gpu.report.checks import Check
from gpu.report.scale import Scale
from support.batches import PagedDriver

from pagewire.scheduler_svc.models.random_shapes import RANDOM_SHAPES
from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.attention.triton import TritonAttention
from pagewire.worker.cuda.kernel_ops import KernelOps
from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.kernels.sets import reference_kernels, triton_kernels
from pagewire.worker.linears.torch import TorchLinear, TorchLinears
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.weights.build import build_decoder
from pagewire.worker.weights.random_source import RandomSource
from pagewire.worker.weights.source import Part

MAX_RELATIVE = 2e-2
_BLOCK_SIZE = 64
_SEED = 3


class RoundedSource:
    """A source's tensors, rounded to bf16, whatever type they are wanted in."""

    def __init__(self, source: RandomSource) -> None:
        self._source = source
        self.shapes: Mapping[str, tuple[int, ...]] = source.shapes
        self.description = source.description

    def describe(self, name: str) -> str:
        return self._source.describe(name)

    def copy_to(self, name: str, out: torch.Tensor, part: Part | None = None) -> None:
        rounded = torch.empty(out.shape, dtype=torch.bfloat16)
        self._source.copy_to(name, rounded, part)
        out.copy_(rounded)


def run(scale: Scale, device: torch.device) -> list[Check]:
    """The largest relative error of a row of logits: ‖ours - reference‖ / ‖reference‖, in a prefill and in decodes."""
    config = msgspec.structs.replace(RANDOM_SHAPES[scale.logit_shape], num_layers=scale.logit_layers)
    kernels = reference_kernels() if scale.is_dry else triton_kernels(overlap=True)
    ours = _steps(config, "bfloat16", kernels, scale, device)
    reference = _steps(config, "float32", reference_kernels(), scale, device)
    errors = [
        float(((mine.double() - theirs.double()).norm(dim=1) / theirs.double().norm(dim=1)).max())
        for mine, theirs in zip(ours, reference, strict=True)
    ]
    return [
        Check(
            what=f"bf16 logits of a {kind}: relative error against fp32",
            seen=error,
            unit="",
            relation="at most",
            limit=MAX_RELATIVE,
        )
        for kind, error in zip(("prefill", "chunk beside decodes", "decode"), errors, strict=True)
    ]


def _steps(
    config: DecoderConfig, dtype: str, kernels: Kernels, scale: Scale, device: torch.device
) -> list[torch.Tensor]:
    """Logits of three steps: two prompts, a chunk beside two decodes, three decodes."""
    length = scale.logit_prompt
    torch_dtype = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    attention = TritonAttention(config, kernels, device, max_num_seqs=4, max_model_len=4 * length, num_sms=132)
    decoder = build_decoder(
        RoundedSource(RandomSource(config, _SEED)),
        config,
        dtype,
        attention,
        lambda stage, done: None,
        KernelOps(config, torch_dtype, device, kernels, max_rows=4 * length, max_positions=4 * length),
        TorchLinears(TorchLinear, device),
        num_threads=4,
    )
    kv = KVCache(config, 4 * (4 * length // _BLOCK_SIZE + 1), _BLOCK_SIZE, torch_dtype, device)
    driver = PagedDriver(decoder, kv)
    ids = torch.randint(0, config.vocab_size, (4, length), generator=torch.Generator().manual_seed(0)).tolist()
    work = [
        {0: ids[0], 1: ids[1][: length // 2]},
        {0: [5], 1: [7], 2: ids[2]},
        {0: [8], 1: [9], 2: [10]},
    ]
    return [_forward(decoder, driver.batch(step), kv, device) for step in work]


def _forward(decoder: Decoder, batch: Batch, kv: KVCache, device: torch.device) -> torch.Tensor:
    moved = {
        name: value.to(device) if isinstance(value := getattr(batch, name), torch.Tensor) else value
        for name in Batch.__dataclass_fields__
    }
    return decoder.forward(Batch(**moved), kv).float().cpu()
