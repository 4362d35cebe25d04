"""What exact continuation costs: steps and kernels that are exact beside those that a start takes otherwise, in the
same process on the same weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from gpu.report import bare_times
from gpu.report.checks import Check
from gpu.report.floors import Rates
from gpu.report.results import PartRecord
from gpu.report.scale import Scale
from gpu.report.steps import platform_of

from pagewire.scheduler_svc.models.random_shapes import RANDOM_SHAPES
from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.choice import AttentionNeeds
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.cuda.kernel_ops import KernelOps
from pagewire.worker.cuda.platform import Platform
from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.kernels.sets import exact_kernels
from pagewire.worker.linears.exact import choose_exact
from pagewire.worker.linears.skinny import choose_kernels
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.weights.build import build_decoder
from pagewire.worker.weights.random_source import RandomSource

_BLOCK_SIZE = 64
_ROUNDS = 3
_MAX_CONTEXT = 8192

Rows = list[tuple[int, int]]
"""Of each sequence, its rows in the step and its context."""


def run(scale: Scale, device: torch.device, rates: Rates, record: PartRecord) -> None:
    """A row for each kind of step, the ratio behind it, and one for each kernel."""
    steps: dict[str, Rows] = {
        "decode of 1 row at 1,024": [(1, 1024)],
        "decode of 16 rows at 1,024": [(1, 1024)] * 16,
        "decode of 256 rows at 1,024": [(1, 1024)] * 256,
        "prefill of 8 × 1,024": [(1024, 1024)] * 8,
        "prefill of 1 × 8,192": [(8192, 8192)],
    }
    if scale.is_dry:
        steps = {"decode of 1 row at 20": [(1, 20)], "prefill of 1 × 8": [(8, 8)]}
    else:
        with record.attempt("kernels"):
            _kernels(scale, device, rates, record)
    config, platform = RANDOM_SHAPES[scale.small_shape], platform_of(scale)
    dtype = torch.float32 if scale.is_dry else torch.bfloat16
    most = max(sum(context for _, context in rows) for rows in steps.values())
    kv = KVCache(config, most // _BLOCK_SIZE + len(max(steps.values(), key=len)), _BLOCK_SIZE, dtype, device)
    for layer in kv.layers:
        layer.normal_()
    seconds: dict[str, dict[str, float]] = {}
    for kind in ("default", "exact"):
        with record.attempt(kind):
            decoder = _decoder(scale, kind, config, dtype, platform)
            seconds[kind] = {name: _step_s(decoder, kv, rows, platform) for name, rows in steps.items()}
            record.add(**{f"{kind}: linears, attention": [decoder.linear_backend, decoder.attention.name]})
    for name in steps:
        default, exact = (seconds.get(kind, {}).get(name, float("nan")) for kind in ("default", "exact"))
        record.add(
            Check(what=f"{name}, default", seen=default * 1e3, unit="ms"),
            Check(what=f"{name}, exact", seen=exact * 1e3, unit="ms"),
            Check(what=f"{name}: exact / default", seen=exact / default, unit="x"),
        )


def _decoder(scale: Scale, kind: str, config: DecoderConfig, dtype: torch.dtype, platform: Platform) -> Decoder:
    """As a start makes one."""
    choose = choose_exact if kind == "exact" else choose_kernels
    kernels, linears = choose(
        platform.kernels(exact=kind == "exact"), platform.device, dtype, lambda: platform.new_capture().capture, print
    )
    needs = AttentionNeeds(
        config=config,
        dtype=dtype,
        device=platform.device,
        max_num_seqs=256,
        max_model_len=_MAX_CONTEXT,
        block_size=_BLOCK_SIZE,
        kernels=kernels,
    )
    return build_decoder(
        RandomSource(config, 1),
        config,
        "float32" if scale.is_dry else "bfloat16",
        platform.attention("triton" if kind == "exact" else "auto", needs),
        lambda stage, done: None,
        KernelOps(config, dtype, platform.device, kernels, max_rows=_MAX_CONTEXT, max_positions=_MAX_CONTEXT),
        linears,
        num_threads=8,
    )


def _step_s(decoder: Decoder, kv: KVCache, rows: Rows, platform: Platform) -> float:
    """Seconds of a step, decodes captured; the median of some."""
    batch = _batch(rows, kv, platform.device)

    def work() -> torch.Tensor:
        return decoder.forward(batch, kv)

    if not batch.is_decode:
        work()
    launch: Callable[[], object] = platform.new_capture().capture(work) if batch.is_decode else work
    return _median_s(launch, platform.device, 8 if batch.is_decode else 1)


def _batch(rows: Rows, kv: KVCache, device: torch.device) -> Batch:
    """Sequences side by side in the cache, each in blocks of its own; the last row of each samples."""
    tables, starts, positions, kv_positions, first_block = [], [0], [], [], 0
    for num_rows, context in rows:
        tables.append(torch.arange(first_block, first_block + -(-context // kv.block_size)))
        position = torch.arange(context - num_rows, context)
        positions.append(position)
        kv_positions.append(tables[-1][position // kv.block_size] * kv.block_size + position % kv.block_size)
        starts.append(starts[-1] + num_rows)
        first_block += len(tables[-1])
    num_all = starts[-1]

    def on_device(values: torch.Tensor, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return values.to(device, dtype)

    return Batch(
        input_ids_T=on_device(torch.arange(num_all) % 50),
        positions_T=on_device(torch.cat(positions)),
        query_starts=on_device(torch.tensor(starts), torch.int32),
        context_lens_B=on_device(torch.tensor([context for _, context in rows]), torch.int32),
        block_tables_BM=on_device(torch.nn.utils.rnn.pad_sequence(tables, batch_first=True), torch.int32),
        write_rows_W=on_device(torch.arange(num_all)),
        kv_positions_W=on_device(torch.cat(kv_positions)),
        sample_rows_S=on_device(torch.tensor(starts[1:]) - 1),
        num_decodes=sum(1 for num_rows, _ in rows if num_rows == 1),
        seq_rows=tuple((start, num_rows, context) for start, (num_rows, context) in zip(starts, rows, strict=False)),
    )


def _kernels(scale: Scale, device: torch.device, rates: Rates, record: PartRecord) -> None:
    """Attention of the cases whose times stand for the others too, and each linear beside the library's."""
    config, kernels = RANDOM_SHAPES[scale.small_shape], exact_kernels(overlap=True)
    decodes = {"1 context of 1,024": [1024], "256 of 1,024": [1024] * 256, "1 of 32,768": [32_768]}
    for name, contexts in decodes.items():
        record.add(bare_times.decode(f"exact paged_decode, {name}", config, contexts, kernels, rates, device))
    for name, lengths in {"8 prompts of 1,024": [1024] * 8, "1 of 8,192": [8192]}.items():
        record.add(bare_times.prefill(f"exact paged_prefill, {name}", config, lengths, kernels, rates, device))
    attended = config.num_heads * config.head_dim
    weights = {
        "qkv": (config.hidden_size, attended + 2 * config.num_kv_heads * config.head_dim),
        "o": (attended, config.hidden_size),
        "gate and up": (config.hidden_size, 2 * config.intermediate_size),
        "down": (config.intermediate_size, config.hidden_size),
        "head": (config.hidden_size, config.vocab_size),
    }
    for num_rows in (1, 16, 256, 8192):
        for name, (width, num_outputs) in weights.items():
            if name != "head" or num_rows <= 256:
                record.add(_linear(f"{name}, {num_rows} rows", width, num_outputs, num_rows, kernels, device))


def _linear(what: str, width: int, num_outputs: int, num_rows: int, kernels: Kernels, device: torch.device) -> Check:
    """µs of a product that is exact; in the floor's place the library's. Weights that no cache holds take turns."""
    copies = max(1, min(16, (200 << 20) // (2 * width * num_outputs)))
    weights = [torch.randn(num_outputs, width, device=device).bfloat16() for _ in range(copies)]
    x = torch.randn(num_rows, width, device=device).bfloat16()
    out = torch.empty(num_rows, num_outputs, device=device, dtype=torch.bfloat16)

    def ours() -> None:
        for weight in weights:
            kernels.linear(x, weight, None, out)

    def library() -> None:
        for weight in weights:
            F.linear(x, weight)

    found_us = [bare_times.median_s(work, device) / copies * 1e6 for work in (ours, library)]
    return Check(what=f"exact linear, {what}; floor: the library's", seen=found_us[0], unit="µs", floor=found_us[1])


def _median_s(launch: Callable[[], object], device: torch.device, repeats: int) -> float:
    return statistics.median(
        [_timed_s(launch, device, repeats) for _ in range(_ROUNDS if device.type == "cuda" else 1)]
    )


def _timed_s(launch: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Of one launch, as the device or, where there is none, the host measures it."""
    if device.type != "cuda":
        begin_s = time.perf_counter()
        launch()
        return time.perf_counter() - begin_s
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        launch()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats
