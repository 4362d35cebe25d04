"""A card's attention backends in bf16 against attention written out in fp32, each by itself: so
FlashAttention = Triton = reference.

A FlashAttention that is not installed is named, with the reason, and not an error.
"""

from __future__ import annotations

import dataclasses
import importlib

import torch
from gpu.report.checks import Check, Skipped
from gpu.report.results import PartRecord
from gpu.report.scale import Scale
from support.paged_world import Heads, PagedWorld, attention_config

from pagewire.worker.attention.base import Batch
from pagewire.worker.attention.choice import AttentionNeeds, CudaCard, attention_candidates
from pagewire.worker.attention.triton import TritonAttention
from pagewire.worker.kernels.sets import reference_kernels, triton_kernels

MAX_DIFFERENCE = 2e-2
_HEADS = Heads(16, 8, 128)
_BLOCK_SIZE = 256
_STEPS = {
    "decodes": [(1, 1), (1, 300), (1, 256), (1, 1500)],
    "prompts": [(70, 70), (3, 270), (500, 900)],
    "skewed": [*((1, 20 + index) for index in range(7)), (1, 2000)],
    "ragged": [(700, 700), *((40, 40) for _ in range(6)), (9, 1900)],
    "mixed": [(1, 40), (1, 700), (33, 33), (128, 400)],
}


def run(scale: Scale, device: torch.device, record: PartRecord) -> None:
    """A check for each backend there is; what is not there, and why. Raises Skipped where there is none."""
    config = attention_config(_HEADS, num_layers=2)
    if scale.is_dry:
        backend = TritonAttention(config, reference_kernels(), device, max_num_seqs=8, max_model_len=2048, num_sms=132)
        record.add(
            **{candidate.name: candidate.missing for candidate in attention_candidates(None, importlib.import_module)}
        )
        record.add(_check(backend.name, backend, device))
        return
    card = CudaCard.of(device)
    needs = AttentionNeeds(
        config=config,
        dtype=torch.bfloat16,
        device=device,
        max_num_seqs=8,
        max_model_len=2048,
        block_size=_BLOCK_SIZE,
        kernels=triton_kernels(overlap=False),
    )
    candidates = {
        candidate.name: (candidate, candidate.unsuited(needs))
        for candidate in attention_candidates(card, importlib.import_module)
    }
    record.add(**{name: reason or candidate.found for name, (candidate, reason) in candidates.items()})
    if all(reason for _, reason in candidates.values()):
        raise Skipped("no attention backend")
    for name, (candidate, reason) in candidates.items():
        if candidate.build is not None and not reason:
            with record.attempt(name):
                record.add(_check(name, candidate.build(needs, card), device))


def _check(name: str, backend: object, device: torch.device) -> Check:
    worst = 0.0
    for sequences in _STEPS.values():
        world = PagedWorld(_HEADS, _BLOCK_SIZE, sequences, torch.bfloat16)
        batch, kv = world.batch()
        kv.layers = [layer.to(device) for layer in kv.layers]
        moved = Batch(
            **{
                field.name: value.to(device) if isinstance(value := getattr(batch, field.name), torch.Tensor) else value
                for field in dataclasses.fields(batch)
            }
        )
        out = backend.begin(moved, kv).attend(1, world.q.to(device)).float().cpu()  # type: ignore[attr-defined]
        expected = world.expected()
        worst = max(worst, float((out - expected).abs().max()) if out.isfinite().all() else float("inf"))
    return Check(
        what=f"{name}, bf16: largest difference from fp32",
        seen=worst,
        unit="",
        relation="at most",
        limit=MAX_DIFFERENCE,
    )
