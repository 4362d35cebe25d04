"""Skinny linears in bf16 at the widths of published models: against their definition, overlapped against not
overlapped bit by bit over many replays, and what a start finds when it tries them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from gpu.report.chain import Chain, most_rows
from gpu.report.checks import Check
from gpu.report.results import PartRecord
from gpu.report.scale import Scale
from support.host_device import EagerCapture

from pagewire.scheduler_svc.models.random_shapes import RANDOM_SHAPES
from pagewire.wire.model import DecoderConfig
from pagewire.worker.cuda.graphs import CudaGraphCapture, GraphCapture
from pagewire.worker.cuda.platform import CudaPlatform
from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.kernels.sets import reference_kernels
from pagewire.worker.linears.skinny import trial

MAX_RELATIVE = 8e-3
"""Of one kernel in bf16: what it stores is rounded once, and so is the norm."""
_DIFFERENT_INPUTS = 8


def run(scale: Scale, shape: str, num_layers: int, device: torch.device, record: PartRecord) -> None:
    """See above, at the widths of one shape."""
    dtype = torch.float32 if scale.is_dry else torch.bfloat16
    kinds = list(_kinds(scale, device))
    for kernels in kinds:
        with record.attempt(kernels.name):
            reason = trial(kernels, device, dtype, _capture(device).capture)
            record.add(
                Check(
                    what=f"{kernels.name}: works when a start tries it",
                    seen=float(not reason),
                    unit="",
                    relation="at least",
                    limit=1.0,
                ),
                **{f"{kernels.name}: refused for": reason},
            )
    if not scale.is_dry:
        with record.attempt("a capture that fails"):
            record.add(_failed_capture(kinds[-1], device, dtype))
    config = RANDOM_SHAPES[shape]
    if len(kinds) > 1:
        with record.attempt(f"replays, {shape}"):
            chain = Chain(config, num_layers, dtype, device)
            for num_rows in sorted({1, most_rows(kinds[0], chain.layers[0][0])}):
                record.add(_replays(scale, shape, chain, num_rows, kinds, device))
    with record.attempt(shape):
        for kernels in kinds:
            record.add(_difference(f"{kernels.name}, {shape}", kernels, config, dtype, device))


def _kinds(scale: Scale, device: torch.device) -> Iterator[Kernels]:
    """What a device is offered, best first; in a dry run the definition, twice."""
    if scale.is_dry:
        yield reference_kernels()
        yield reference_kernels()
    else:
        yield from CudaPlatform().kernels()


def _capture(device: torch.device) -> GraphCapture:
    return CudaGraphCapture(device) if device.type == "cuda" else EagerCapture()


def _failed_capture(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> Check:
    """A synchronization cannot be captured; what follows must work all the same, in the memory that was there."""
    bad = dataclasses.replace(kernels, linear=lambda *tensors: tensors[-1].fill_(float(tensors[-1].sum().item())))
    before = trial(bad, device, dtype, _capture(device).capture)
    after = trial(kernels, device, dtype, _capture(device).capture)
    again = torch.ones(1 << 20, device=device).sum().item()
    holds = bool(before) and not after and again == float(1 << 20)
    return Check(
        what="a capture that fails is told, and the next one works",
        seen=float(holds),
        unit="",
        relation="at least",
        limit=1.0,
    )


def _difference(what: str, kernels: Kernels, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> Check:
    """The largest relative error of any of a layer's linears and of the head, for every number of rows."""
    chain = Chain(config, 1, dtype, device)
    definition = reference_kernels()
    worst = 0.0
    for num_rows in range(1, most_rows(kernels, chain.layers[0][0]) + 1):
        for ours, theirs in zip(
            _each(chain, kernels, num_rows, dtype, device),
            _each(chain, definition, num_rows, dtype, device),
            strict=True,
        ):
            size = float(theirs.double().norm())
            if not size:  # these kernels are not asked for so many rows of it
                continue
            error = float((ours.double() - theirs.double()).norm()) / size
            worst = max(worst, error if error == error else float("inf"))
    return Check(
        what=f"{what}: relative error of a linear", seen=worst, unit="", relation="at most", limit=MAX_RELATIVE
    )


def _each(
    chain: Chain, kernels: Kernels, num_rows: int, dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    """Every linear by itself on inputs of its own, so that errors do not add up; and the sums."""
    c = chain.config
    qkv_weight, o, gate_up, down = chain.layers[0]
    norm, floor = torch.full((c.hidden_size,), c.hidden_size**0.5, device=device), 1e-6 * c.hidden_size

    def drawn(width: int, seed: int) -> torch.Tensor:
        generator = torch.Generator(device).manual_seed(seed)
        return torch.randn(num_rows, width, device=device, generator=generator).to(dtype)

    def empty(width: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.full((num_rows, width), float("nan"), dtype=kind, device=device)

    x, delta = chain.inputs(num_rows, 1), drawn(c.hidden_size, 2)
    outs = [
        empty(chain.qkv_width),
        empty(c.hidden_size),
        empty(c.intermediate_size),
        empty(c.hidden_size),
        empty(c.vocab_size, torch.float32),
    ]
    sums = [empty(c.hidden_size, torch.float32) for _ in range(2)]
    kernels.add_norm_linear(x, delta, norm, floor, qkv_weight, None, sums[0], outs[0])
    for out, weight, seed in ((outs[1], o, 3), (outs[3], down, 4), (outs[4], chain.head, 5)):
        if num_rows <= most_rows(kernels, weight):
            kernels.linear(drawn(weight.shape[1], seed), weight, None, out)
        else:
            out.zero_()
    kernels.add_norm_gate_up(x, delta, norm, floor, gate_up, None, sums[1], outs[2])
    return [*outs, *sums]


def _replays(
    scale: Scale, shape: str, chain: Chain, num_rows: int, kinds: list[Kernels], device: torch.device
) -> Check:
    """Values of logits that differ, over all replays of the first kind, from the last kind's."""
    inputs = [chain.inputs(num_rows, 10 + index) for index in range(_DIFFERENT_INPUTS)]
    x = inputs[0].clone()
    plain, plain_logits, _ = chain.work(kinds[-1], x)
    launch = _capture(device).capture(plain)
    expected = []
    for each in inputs:
        x.copy_(each)
        launch()
        expected.append(plain_logits.clone())
    ours, logits, _ = chain.work(kinds[0], x)
    launch = _capture(device).capture(ours)
    num_differing = torch.zeros((), dtype=torch.int64, device=device)
    for index in range(scale.replays):
        x.copy_(inputs[index % _DIFFERENT_INPUTS])
        launch()
        num_differing += (logits != expected[index % _DIFFERENT_INPUTS]).sum()
    if not all(bool(each.isfinite().all()) for each in expected):
        num_differing += 1
    return Check(
        what=f"{shape}, {chain.num_layers} layers, {num_rows} rows: {scale.replays} replays of {kinds[0].name}, "
        f"values that are not {kinds[-1].name}'s",
        seen=float(num_differing.item()),
        unit="values",
        relation="at most",
        limit=0,
    )
