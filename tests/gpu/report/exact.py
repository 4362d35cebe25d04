"""Exact continuation on the device: what was decoded beside a changing company is computed again from every kind of
cut, and no bit of its logits differs. `exact_times` says what that costs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import count
from random import Random

import msgspec
import torch
from gpu.report.checks import Check
from gpu.report.results import PartRecord
from gpu.report.scale import Scale
from gpu.report.steps import models, platform_of
from support.recomputation import KeptLogits, Recomputation, rows_alone
from support.worker_process import sim_launch

from pagewire.scheduler_svc.models.random_shapes import RANDOM_SHAPES
from pagewire.wire.model import DecoderConfig, DType
from pagewire.worker.attention.triton import TritonAttention
from pagewire.worker.cuda.bring_up import CudaStart, bring_up
from pagewire.worker.cuda.graphs import CudaGraphCapture
from pagewire.worker.cuda.kernel_ops import KernelOps
from pagewire.worker.cuda.platform import Platform
from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.kernels.sets import exact_kernels
from pagewire.worker.kernels.triton.attention_tile import shared_bytes
from pagewire.worker.kernels.triton.exact_linear import linear_by, linear_tiles
from pagewire.worker.launch import slot_limits
from pagewire.worker.linears.exact import ExactLinears, trial
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.weights.build import TORCH_DTYPES, build_decoder
from pagewire.worker.weights.random_source import RandomSource

_BLOCK_SIZE = 64
_LAYERS, _VOCAB = 3, 12_000
"""Of the published shape; more would compare the same kernels."""
_COMPANY = (0, 3, 1, 40, 9, 0, 70, 17)
_TILED_ROWS = 640


def run(scale: Scale, dtype: DType, device: torch.device, record: PartRecord) -> None:
    """Values that differ, of each model in this type."""
    if dtype == "bfloat16":
        with record.attempt("trial"):
            record.add(_trial(device))
        with record.attempt("tiles"):
            record.add(_tiles(scale, device))
    for name, config in _models(scale).items():
        with record.attempt(name), rows_alone() if scale.is_dry else nullcontext():
            _recompute(scale, f"{name}, {dtype}", config, dtype, device, record)


def _models(scale: Scale) -> dict[str, DecoderConfig]:
    if scale.is_dry:
        return {"tiny": msgspec.structs.replace(models()["tiny"], num_layers=1)}
    shape = msgspec.structs.replace(RANDOM_SHAPES[scale.small_shape], num_layers=_LAYERS, vocab_size=_VOCAB)
    return {"heads of 128": models()["heads of 128"], f"{_LAYERS} layers of {scale.small_shape}": shape}


def _none_differ(what: str, seen: int) -> Check:
    return Check(what=what, seen=float(seen), unit="values", relation="at most", limit=0)


def _trial(device: torch.device) -> Check:
    reason = trial(exact_kernels(overlap=True), device, torch.bfloat16, CudaGraphCapture(device).capture)
    return Check(
        what="a start's trial of exact linears" + f": {reason}" * bool(reason),
        seen=float(not reason),
        unit="",
        relation="at least",
        limit=1.0,
    )


def _tiles(scale: Scale, device: torch.device) -> Check:
    """Linears of published shapes in all tiles that there are: values that are not the first's."""
    num_differing = 0
    for shape in (scale.small_shape, scale.large_shape):
        c = RANDOM_SHAPES[shape]
        attended = c.num_heads * c.head_dim
        widths = [
            (c.hidden_size, attended + 2 * c.num_kv_heads * c.head_dim),
            (attended, c.hidden_size),
            (c.hidden_size, 2 * c.intermediate_size),
            (c.intermediate_size, c.hidden_size),
        ]
        for width, num_outputs in widths:
            x = torch.randn(_TILED_ROWS, width, device=device).bfloat16()
            weight = (torch.randn(num_outputs, width, device=device) / width**0.5).bfloat16()
            outs = []
            for outputs in (1024, num_outputs):  # tiles of few outputs and of many
                for _, tile in linear_tiles(outputs, 2, shared_bytes(device)):
                    outs.append(torch.empty(_TILED_ROWS, num_outputs, device=device))
                    linear_by(tile, x, weight, None, outs[-1])
            num_differing += sum(int((out != outs[0]).sum()) for out in outs[1:])
            close = torch.allclose(outs[0], (x.float() @ weight.float().T), rtol=1e-2, atol=1e-2)
            num_differing += 0 if close else outs[0].numel()
    return _none_differ(f"linears of {scale.small_shape} and {scale.large_shape} in tiles of every size", num_differing)


def _recompute(
    scale: Scale, what: str, config: DecoderConfig, dtype: DType, device: torch.device, record: PartRecord
) -> None:
    """Decoding, captured and beside others, against decoding alone one operation after the other, and against prompts
    of the lengths where tiles, blocks and partitions end."""
    length, lengths = (12, (8,)) if scale.is_dry else (1100, (6, 63, 64, 65, 300, 511, 512, 513, 777, 1024, 1025))
    draw = Random(7)
    world = {False: _world(scale, config, dtype, device, length, eager=False)}
    world[True] = world[False] if scale.is_dry else _world(scale, config, dtype, device, length, eager=True)
    prompt = [draw.randrange(config.vocab_size) for _ in range(5)]
    history = world[False].first(prompt, length, _COMPANY, draw)
    alone = world[True].first(prompt, length, [0], draw)
    kinds = {"decoded alone, eager": int((alone.logits_LV != history.logits_LV).sum())}
    cases: dict[str, Callable[[int], int]] = {
        "prompts": lambda cut: world[False].again(history, cut, 3, None),
        "prompts, eager": lambda cut: world[True].again(history, cut, 3, None),
        "in chunks beside others": lambda cut: world[False].again(history, cut, 3, draw),
        "in chunks beside others, eager": lambda cut: world[True].again(history, cut, 3, draw),
    }
    for kind, again in cases.items():
        kinds[kind] = sum(again(cut) for cut in lengths)
    varied = bool(history.logits_LV.isfinite().all()) and len(set(history.ids)) > length // 4
    record.add(
        *(_none_differ(f"{what}: {kind}, of {length} tokens", seen) for kind, seen in kinds.items()),
        _none_differ(f"{what}: the sequence repeats itself or is not finite", int(not varied)),
    )


def _world(
    scale: Scale, config: DecoderConfig, dtype: DType, device: torch.device, length: int, eager: bool
) -> Recomputation:
    """As the worker brings a device up, but that the model's logits are kept."""
    platform, kernels = platform_of(scale), exact_kernels(overlap=not scale.is_dry)
    num_seqs = 2 if scale.is_dry else 80
    launch = sim_launch(
        "ipc:///nowhere",
        device="cuda",
        dtype=dtype,
        max_num_seqs=num_seqs,
        max_model_len=length + 40,
        max_num_batched_tokens=length + 2 if scale.is_dry else 40 * num_seqs,
        block_size=_BLOCK_SIZE,
        enforce_eager=eager,
        exact_continuation=True,
        kv_cache_bytes=None if scale.is_dry else 8 << 30,
    )
    launch = msgspec.structs.replace(launch, model=msgspec.structs.replace(launch.model, decoder=config))
    decoder = decoder_of(
        config, dtype, kernels, platform, num_seqs, launch.max_model_len, launch.max_num_batched_tokens
    )
    kept = KeptLogits(decoder, slot_limits(launch, _BLOCK_SIZE, num_blocks=1), device)
    start = CudaStart(
        launch=launch,
        platform=platform,
        kernels=kernels,
        model=kept,
        config=config,
        block_size=_BLOCK_SIZE,
        before_model_bytes=0,
        weights_bytes=decoder.weights_bytes,
    )
    runner, limits, _ = bring_up(start, lambda times: None, lambda stage, done: None)
    return Recomputation(runner, kept, limits, count(1))


def decoder_of(
    config: DecoderConfig,
    dtype: DType,
    kernels: Kernels,
    platform: Platform,
    max_num_seqs: int,
    max_model_len: int,
    max_rows: int,
) -> Decoder:
    """Random weights and the kernels, with exact linears."""
    device, torch_dtype = platform.device, TORCH_DTYPES[dtype]
    attention = TritonAttention(
        config, kernels, device, max_num_seqs=max_num_seqs, max_model_len=max_model_len, num_sms=132
    )
    ops = KernelOps(config, torch_dtype, device, kernels, max_rows=max_rows, max_positions=max_model_len)
    return build_decoder(
        RandomSource(config, 1),
        config,
        dtype,
        attention,
        lambda stage, done: None,
        ops,
        ExactLinears(kernels, device),
        num_threads=4,
    )
