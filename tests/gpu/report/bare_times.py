"""Times of single kernels on inputs that no cache holds, each beside its floor: attention of even and of uneven
batches, and skinny linears."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from gpu.report.chain import Chain
from gpu.report.checks import Check
from gpu.report.floors import Rates
from gpu.report.results import PartRecord
from gpu.report.scale import Scale
from support.host_device import EagerCapture

from pagewire.scheduler_svc.models.random_shapes import RANDOM_SHAPES
from pagewire.wire.model import DecoderConfig
from pagewire.worker.cuda.graphs import CudaGraphCapture
from pagewire.worker.cuda.platform import CudaPlatform
from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.kernels.sets import reference_kernels, triton_kernels
from pagewire.worker.kernels.workspaces import DecodeWorkspace

_BLOCK_SIZE = 64
_NUM_SMS = 132
_ROUNDS = 5
_UNCACHED_BYTES = 400 << 20
_MOST_LAYERS = 28
_LAYERS = 14
"""Of a chain of linears."""


def run(scale: Scale, device: torch.device, rates: Rates, record: PartRecord) -> None:
    """A row for each case."""
    config = RANDOM_SHAPES[scale.small_shape]
    paged = reference_kernels() if scale.is_dry else triton_kernels(overlap=True)
    for name, contexts in _decodes(scale).items():
        with record.attempt(name):
            record.add(decode(f"paged_decode, {name}", config, contexts, paged, rates, device))
    for name, lengths in _prompts(scale).items():
        with record.attempt(name):
            record.add(prefill(f"paged_prefill, {name}", config, lengths, paged, rates, device))
    for num_rows in (1, 4):
        with record.attempt(f"linears of {num_rows} rows"):
            record.add(*_linears(scale, config, num_rows, rates, device))


def _decodes(scale: Scale) -> dict[str, list[int]]:
    if scale.is_dry:
        return {"2 contexts of 20": [20, 20]}
    return {
        "one context of 1,024": [1024],
        "one context of 32,768": [32_768],
        "256 contexts of 1,024": [1024] * 256,
        "255 contexts of 1,024 and one of 32,768": [1024] * 255 + [32_768],
        "256 contexts of 64 to 1,984": [64 + 1920 * index // 255 for index in range(256)],
    }


def _prompts(scale: Scale) -> dict[str, list[int]]:
    if scale.is_dry:
        return {"2 prompts of 20": [20, 20]}
    return {
        "8 prompts of 1,024": [1024] * 8,
        "one prompt of 8,192": [8192],
        "one prompt of 4,000 and 60 of 60": [4000] + [60] * 60,
    }


def _cache(
    config: DecoderConfig, contexts: Sequence[int], device: torch.device
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Layers of keys and values, as many as no cache holds; tables whose blocks lie anywhere; lengths."""
    needed = [-(-context // _BLOCK_SIZE) for context in contexts]
    shape = (2, sum(needed), config.num_kv_heads, _BLOCK_SIZE, config.head_dim)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    layer_bytes = dtype.itemsize
    for size in shape:
        layer_bytes *= size
    num_layers = min(_MOST_LAYERS, -(-_UNCACHED_BYTES // layer_bytes)) if device.type == "cuda" else 1
    layers = [torch.randn(shape, dtype=dtype, device=device) for _ in range(num_layers)]
    order = torch.randperm(sum(needed), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    tables, start = torch.zeros(len(needed), max(needed), dtype=torch.int32), 0
    for row, count in enumerate(needed):
        tables[row, :count] = order[start : start + count]
        start += count
    return layers, tables.to(device), torch.tensor(contexts, dtype=torch.int32, device=device)


def decode(
    what: str,
    config: DecoderConfig,
    contexts: list[int],
    paged: Kernels,
    rates: Rates,
    device: torch.device,
) -> Check:
    """A layer's attention of decoding rows; µs."""
    layers, tables, lens = _cache(config, contexts, device)
    c, rows = config, len(contexts)
    workspace = DecodeWorkspace.allocate(
        max_rows=rows,
        num_heads=c.num_heads,
        num_kv_heads=c.num_kv_heads,
        head_dim=c.head_dim,
        max_context=max(4096, *contexts),
        num_sms=_NUM_SMS,
        device=device,
        partitions=paged.is_exact,
    )
    q = torch.randn(rows, c.num_heads, c.head_dim, device=device).to(layers[0].dtype)
    out = torch.empty_like(q)

    def work() -> None:
        for layer in layers:
            paged.paged_decode(q, layer, tables, lens, out, scale=c.head_dim**-0.5, workspace=workspace)

    num_bytes = 2 * sum(contexts) * c.num_kv_heads * c.head_dim * layers[0].element_size()
    return _row(what, median_s(work, device) / len(layers), num_bytes / rates.bytes_per_s)


def prefill(
    what: str,
    config: DecoderConfig,
    lengths: list[int],
    paged: Kernels,
    rates: Rates,
    device: torch.device,
) -> Check:
    """A layer's attention of whole prompts; µs."""
    layers, tables, lens = _cache(config, lengths, device)
    c = config
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(device)
    q = torch.randn(sum(lengths), c.num_heads, c.head_dim, device=device).to(layers[0].dtype)
    out = torch.empty_like(q)
    some = layers[:4]

    def work() -> None:
        for layer in some:
            paged.paged_prefill(q, layer, tables, starts, lens, out, scale=c.head_dim**-0.5, max_query_len=max(lengths))

    flops = sum(2 * c.num_heads * c.head_dim * length * (length + 1) for length in lengths)
    return _row(what, median_s(work, device) / len(some), flops / rates.flops_per_s)


def _linears(scale: Scale, config: DecoderConfig, num_rows: int, rates: Rates, device: torch.device) -> list[Check]:
    """A layer's four linears with their norms: the skinny kernels, and the library's products alone."""
    dtype = torch.float32 if scale.is_dry else torch.bfloat16
    chain = Chain(config, 2 if scale.is_dry else _LAYERS, dtype, device)
    x = chain.inputs(num_rows, 1)
    kinds = [reference_kernels()] if scale.is_dry else CudaPlatform().kernels()
    head_s = chain.head.nbytes / rates.bytes_per_s
    floor_s = chain.layer_bytes / rates.bytes_per_s + head_s / chain.num_layers
    rows = "1 row" if num_rows == 1 else f"{num_rows} rows"
    found = []
    for kernels in kinds:
        step, _, _ = chain.work(kernels, x)
        found.append(
            _row(f"a layer's linears, {rows}: {kernels.name}", median_s(step, device) / chain.num_layers, floor_s)
        )
    attended = torch.randn(num_rows, chain.attended, device=device).to(dtype)
    inner = torch.randn(num_rows, config.intermediate_size, device=device).to(dtype)
    last = x.to(dtype)

    def products() -> None:
        for qkv, o, gate_up, down in chain.layers:
            F.linear(last, qkv)
            F.linear(attended, o)
            F.linear(last, gate_up)
            F.linear(inner, down)
        F.linear(last, chain.head)

    seconds = median_s(products, device) / chain.num_layers
    return [*found, _row(f"a layer's products alone, {rows}: the library", seconds, floor_s)]


def _row(what: str, seconds: float, floor_s: float) -> Check:
    return Check(what=what, seen=seconds * 1e6, unit="µs", floor=floor_s * 1e6)


def median_s(work: Callable[[], None], device: torch.device) -> float:
    """Of one call, captured; the median of some rounds, each long enough for a clock."""
    if device.type != "cuda":
        launch = EagerCapture().capture(work)
        begin_s = time.perf_counter()
        launch()
        return time.perf_counter() - begin_s
    with torch.inference_mode():
        launch = CudaGraphCapture(device).capture(work)
    rounds = []
    for _ in range(_ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(3):
            launch()
        end.record()
        end.synchronize()
        rounds.append(begin.elapsed_time(end) / 3e3)
    return statistics.median(rounds)
