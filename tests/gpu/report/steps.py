"""Greedy and sampled tokens in fp32, over random plans: captured steps, steps launched one operation after the other,
and the plain CPU path agree token for token. In a dry run the CPU stands in for the device."""

from __future__ import annotations

import msgspec
import torch
from gpu.report.checks import Check
from gpu.report.results import PartRecord
from gpu.report.scale import Scale
from support.device_runner import tiny_config, tiny_spec
from support.host_device import CpuPlatform
from support.plan_stream import LoadedStream
from support.worker_process import sim_launch

from pagewire.wire.model import DecoderConfig
from pagewire.worker.cuda.platform import CudaPlatform, Platform

_SEEDS = (0, 1, 2)
_SHOWN = 400
"""Characters of a difference."""


def platform_of(scale: Scale) -> Platform:
    """The device of the run, or its stand-in."""
    return CpuPlatform() if scale.is_dry else CudaPlatform()


def models() -> dict[str, DecoderConfig]:
    """Small ones, because the plain path computes them on the CPU: a tiny one, and one with the heads of Qwen3."""
    tiny = tiny_config(vocab_size=100)
    wide = msgspec.structs.replace(
        tiny, hidden_size=256, intermediate_size=512, num_heads=8, num_kv_heads=4, head_dim=128, vocab_size=3000
    )
    return {"tiny": tiny, "heads of 128": wide}


def run(scale: Scale, name: str, record: PartRecord) -> None:
    """The number of streams of plans whose tokens differ; where the first differences were, and the memory went."""
    config = models()[name]
    # The plain path's tensors are small: on many threads they spend their time in barriers, beside parts that compile.
    torch.set_num_threads(1)
    for enforce_eager in (False, True):
        kind = f"{name}, {'eager' if enforce_eager else 'captured'}"
        with record.attempt(kind):
            _check(scale, kind, config, enforce_eager, record)


def _check(scale: Scale, kind: str, config: DecoderConfig, enforce_eager: bool, record: PartRecord) -> None:
    launch = sim_launch(
        "ipc:///nowhere",
        device="cuda",
        dtype="float32",
        model=tiny_spec(config),
        max_num_seqs=20,
        max_model_len=64,
        max_num_batched_tokens=96,
        block_size=16,
        attention_backend="triton",
        enforce_eager=enforce_eager,
    )
    stream = LoadedStream(launch, platform_of(scale))
    record.add(**{f"{kind}: memory": list(stream.loaded.notes)})
    for special in (False, True):
        what = f"{kind}, special rows" if special else kind
        differences: dict[str, str] = {}
        for seed in _SEEDS[: 1 if scale.is_dry else None]:
            try:
                stream.check(seed, scale.plan_steps, special=special)
            except AssertionError as error:
                differences[f"seed {seed}"] = " ".join(str(error).split())[:_SHOWN]
        record.add(
            Check(
                what=f"{what} steps, fp32: streams of plans whose results are not the CPU's",
                seen=len(differences),
                unit="streams",
                relation="at most",
                limit=0,
            ),
            **{f"{what}: differences": differences},
        )
