"""Every Triton kernel against its definition in torch, both on the same device, in fp32.

In a dry run Triton interprets (`TRITON_INTERPRET=1`) on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import torch
from gpu.report.checks import Check
from gpu.report.results import PartRecord
from gpu.report.scale import Scale
from support.device_processors import processed
from support.drawn_admits import KINDS, DrawnAdmits, random_logits
from support.paged_world import Heads, PagedWorld
from support.sampling_rows import SETTINGS, device_rows
from support.worker_plans import PlanModel

from pagewire.worker.cuda.plan_packer import PlanPacker, packed_capacity
from pagewire.worker.cuda.slot_state import SlotLayout
from pagewire.worker.cuda.step_buffers import StepBuffers, StepShape
from pagewire.worker.kernels.contract import SEQ_FIELDS, StepTensors
from pagewire.worker.kernels.reference import elementwise, paged_prefill, step_state
from pagewire.worker.kernels.reference import logprobs as torch_logprobs
from pagewire.worker.kernels.reference import paged_decode as torch_decode
from pagewire.worker.kernels.reference import sampling as torch_sampling
from pagewire.worker.kernels.sets import reference_kernels, triton_kernels
from pagewire.worker.kernels.triton import elementwise as triton_elementwise
from pagewire.worker.kernels.triton import logprobs as triton_logprobs
from pagewire.worker.kernels.triton import paged_decode as triton_decode
from pagewire.worker.kernels.triton import paged_prefill as triton_prefill
from pagewire.worker.kernels.triton import sampling as triton_sampling
from pagewire.worker.kernels.triton import step_state as triton_state
from pagewire.worker.kernels.workspaces import DecodeWorkspace, LogprobsWorkspace, SamplingWorkspace
from pagewire.worker.slots.columns import SlotLimits
from pagewire.worker.slots.state import Slots

TOLERANCE = 1e-4
"""Of fp32, relative and absolute: sums are taken in another order."""
MOST_OTHER_DRAWS = 2
"""Of all sampled rows: the exponential may differ by its last bit, and a draw lie that close to an edge."""

_DRY_HEADS = [(Heads(4, 2, 16), 16)]
_GPU_HEADS = [(Heads(16, 8, 128), 64), (Heads(32, 8, 128), 64), (Heads(9, 3, 64), 16), (Heads(5, 1, 80), 256)]


def run(scale: Scale, device: torch.device, record: PartRecord) -> None:
    """One check for each kernel: the largest difference, or how many values differ that must be equal."""
    heads = _DRY_HEADS if scale.is_dry else _GPU_HEADS
    checks: dict[str, Callable[[str], Check]] = {
        "paged_decode": lambda what: _close(what, max(_decode(h, size, device) for h, size in heads)),
        "paged_decode, one long context": lambda what: _close(
            what, max(_decode(h, size, device, _skewed(scale)) for h, size in heads[:1])
        ),
        "paged_prefill": lambda what: _close(what, max(_prefill(h, size, device) for h, size in heads)),
        "paged_prefill, one long prompt": lambda what: _close(
            what, max(_prefill(h, size, device, _ragged(scale)) for h, size in heads[:1])
        ),
        "start_rms_norm, add_rms_norm": lambda what: _close(what, _norms(40 if scale.is_dry else 1024, device)),
        "silu_mul": lambda what: _close(what, _silu_mul(52 if scale.is_dry else 3072, device)),
        "rotate_and_store": lambda what: _close(what, max(_rotate(h, size, device) for h, size in heads)),
        "apply_changes, prepare_step, finish_step": lambda what: _equal(
            what, _step_state(3 if scale.is_dry else 40, device), 0
        ),
        "sample": lambda what: _equal(what, _sample(scale.sampled_vocab, device), MOST_OTHER_DRAWS),
        "process, finish_changed": lambda what: _equal(
            what, _processors(scale.sampled_vocab, device), MOST_OTHER_DRAWS
        ),
        "logprobs": lambda what: _close(what, _logprobs(scale.sampled_vocab, device)),
    }
    for what, check in checks.items():
        with record.attempt(what):
            record.add(check(what))


def _close(what: str, difference: float) -> Check:
    return Check(
        what=f"{what}: Triton - torch, fp32", seen=difference, unit="of tolerance", relation="at most", limit=1.0
    )


def _equal(what: str, num_differing: int, most: int) -> Check:
    return Check(what=f"{what}: values that differ", seen=num_differing, unit="values", relation="at most", limit=most)


def difference(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = TOLERANCE) -> float:
    """The largest |ours - theirs| as a share of what is allowed, tolerance · (1 + |theirs|); infinite where NaNs or
    infinities are not the same."""
    if not torch.equal(ours.isnan(), theirs.isnan()) or not torch.equal(ours.isinf(), theirs.isinf()):
        return float("inf")
    finite = theirs.isfinite()
    if not torch.equal(ours[~finite & ~theirs.isnan()], theirs[~finite & ~theirs.isnan()]):
        return float("inf")
    mine, other = ours[finite].double(), theirs[finite].double()
    if mine.numel() == 0:
        return 0.0
    return float(((mine - other).abs() / (tolerance * (1 + other.abs()))).max())


def rows_on(world: PagedWorld, device: torch.device) -> torch.Tensor:
    """The world's queries on a device, as the decoder hands them over: a part of wider rows."""
    h = world.heads
    beside = world.q.new_zeros(world.q.shape[0], 2 * h.num_kv_heads * h.head_dim)
    wide = torch.cat((world.q.flatten(1), beside), dim=1).to(device)
    return wide[:, : h.num_heads * h.head_dim].unflatten(1, (h.num_heads, h.head_dim))


def _skewed(scale: Scale) -> tuple[int, ...]:
    """Short contexts beside one that is long."""
    return (20, 300, 20) if scale.is_dry else (*range(40, 56), 9_000)


def _ragged(scale: Scale) -> list[tuple[int, int]]:
    """Short prompts beside one that is long."""
    return [(5, 5), (60, 60), (3, 3)] if scale.is_dry else [(2000, 2000), *((60, 60) for _ in range(30)), (50, 3000)]


def _decode(heads: Heads, block_size: int, device: torch.device, contexts: tuple[int, ...] = ()) -> float:
    if not contexts:
        contexts = (1, block_size, block_size + 1, 0, 127, 129, 300)
        if device.type == "cuda":
            contexts += (1024, 4095, 4097)
    world = PagedWorld(heads, block_size, [(1, context) for context in contexts])
    workspace = DecodeWorkspace.allocate(
        max_rows=max(16, len(contexts)),
        num_heads=heads.num_heads,
        num_kv_heads=heads.num_kv_heads,
        head_dim=heads.head_dim,
        max_context=max(contexts),
        num_sms=132,
        device=device,
    )
    q, kv, tables, lens = (
        rows_on(world, device),
        *(part.to(device) for part in (world.kv_layer, world.tables, world.context_lens)),
    )
    results = []
    # Ours twice, because the first launch must leave the counters as it found them.
    for kernel in (torch_decode.paged_decode, triton_decode.paged_decode, triton_decode.paged_decode):
        out = torch.full(world.q.shape, float("nan"), device=device)
        kernel(q, kv, tables, lens, out, scale=heads.scale, workspace=workspace)
        results.append(out)
    return max(difference(ours, results[0]) for ours in results[1:])


def _prefill(
    heads: Heads, block_size: int, device: torch.device, sequences: list[tuple[int, int]] | None = None
) -> float:
    if sequences is None:
        sequences = [(7, 7), (3, 70), (1, 20), (block_size, block_size), (4, 0)]
        if device.type == "cuda":
            sequences += [(500, 500), (130, 1100), (1, 2000)]
    world = PagedWorld(heads, block_size, sequences)
    q, kv, tables, starts, lens = (
        rows_on(world, device),
        *(part.to(device) for part in (world.kv_layer, world.tables, world.query_starts, world.context_lens)),
    )
    results = []
    for kernel in (paged_prefill.paged_prefill, triton_prefill.paged_prefill):
        out = torch.full(world.q.shape, float("nan"), device=device)
        kernel(q, kv, tables, starts, lens, out, scale=heads.scale, max_query_len=world.max_query_len)
        results.append(out)
    return difference(results[1], results[0])


def _norms(width: int, device: torch.device) -> float:
    torch.manual_seed(0)
    x, delta, weight = (torch.randn(*shape, device=device) for shape in ((17, width), (17, width), (width,)))
    results = []
    for kernels in (elementwise, triton_elementwise):
        sums, outs = [x.clone(), x.clone()], [torch.empty_like(x), torch.empty_like(x)]
        kernels.start_rms_norm(delta, sums[0], weight, 0.1, outs[0])
        kernels.add_rms_norm(sums[1], delta, weight, 0.1, outs[1])
        results.append([*sums, *outs])
    return max(map(difference, *results))


def _silu_mul(inner: int, device: torch.device) -> float:
    torch.manual_seed(1)
    gate_up = 4 * torch.randn(9, 2 * inner, device=device)
    ours, theirs = (torch.empty(9, inner, device=device) for _ in range(2))
    triton_elementwise.silu_mul(gate_up, ours)
    elementwise.silu_mul(gate_up, theirs)
    return difference(ours, theirs)


def _rotate(heads: Heads, block_size: int, device: torch.device) -> float:
    torch.manual_seed(heads.head_dim)
    num_blocks, num_positions = 4, 40
    last = num_blocks * block_size - 1
    kv_positions = torch.tensor([last, -1, 0, last // 2, -1], device=device)
    qkv = torch.randn(5, (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim, device=device)
    weight = torch.randn(heads.num_heads + heads.num_kv_heads, heads.head_dim, device=device)
    angles = torch.randn(num_positions, heads.head_dim // 2, device=device)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    positions = torch.randint(0, num_positions, (5,), device=device)
    layer = torch.randn(2, num_blocks, heads.num_kv_heads, block_size, heads.head_dim, device=device)
    results = []
    for kernel in (elementwise.rotate_and_store, triton_elementwise.rotate_and_store):
        ours, kv = qkv.clone(), layer.clone()
        kernel(ours, weight, 0.1, cos_sin, positions, kv_positions, kv)
        results.append((ours[:, : heads.num_heads * heads.head_dim], kv))
    return max(difference(ours, theirs) for ours, theirs in zip(results[1], results[0], strict=True))


def _step_state(num_plans: int, device: torch.device) -> int:
    """Over a random stream of plans: words and inputs that differ."""
    limits = SlotLimits(
        max_num_seqs=6, max_model_len=40, max_num_batched_tokens=24, block_size=4, num_blocks=40, vocab_size=100
    )
    plans, host = PlanModel(limits, Random(8)), Slots(limits)
    host.begin(1)
    packer, layout = PlanPacker(host.columns, limits), SlotLayout.of(limits)
    packed = torch.zeros(packed_capacity(limits), dtype=torch.int32)
    both = [
        (kind, layout.allocate(device), StepBuffers(limits, len(packed), device)) for kind in (step_state, triton_state)
    ]
    num_differing = 0
    for index in range(num_plans):
        step = host.apply(plans.step()[0])
        num_seqs = len(step.decode_slots) + len(step.chunks)
        plan = packer.pack(step, num_seqs, packed.numpy())
        on_device = packed.to(device)
        first, middle = plan.changes_start, plan.changes_start + plan.num_changes
        seqs_BQ = on_device[: num_seqs * SEQ_FIELDS].view(-1, SEQ_FIELDS)
        tokens_S = torch.arange(len(step.sample_slots), dtype=torch.int32, device=device) + index
        rows = [len(chunk.tokens) for chunk in step.chunks]
        inputs: list[StepTensors] = []
        for kind, slots, buffers in both:
            kind.apply_changes(slots, on_device[first:middle], on_device[middle : plan.num_words])
            if not num_seqs:
                continue
            seq_rows = [(0, 1, 1)] * len(step.decode_slots) + [(0, count, count) for count in rows]
            tensors = buffers.tensors(StepShape(tuple(seq_rows), len(step.decode_slots), len(tokens_S)))
            kind.prepare_step(
                slots,
                seqs_BQ,
                on_device[plan.ids_start :],
                tensors,
                block_size=limits.block_size,
                max_rows=max([1, *rows]),
            )
            kind.finish_step(slots, seqs_BQ, tokens_S)
            inputs.append(tensors)
        num_differing += int((both[0][1].arena != both[1][1].arena).sum())
        if inputs:
            for name in StepTensors.__slots__:
                ours, theirs = (vars_of[name] for vars_of in map(_fields, inputs))
                num_differing += int((ours != theirs).sum())
    return num_differing


def _fields(step: StepTensors) -> dict[str, torch.Tensor]:
    return {name: getattr(step, name) for name in StepTensors.__slots__}


def _sample(vocab_size: int, device: torch.device) -> int:
    torch.manual_seed(vocab_size)
    num_differing = 0
    for spread, quantum in ((3.0, False), (0.1, False), (2.0, True)):
        logits_SV = spread * torch.randn(len(SETTINGS), vocab_size)
        logits_SV = (logits_SV.round() if quantum else logits_SV).to(device)
        columns = [column.to(device) for column in device_rows(SETTINGS).columns]
        tokens = []
        for kernel in (torch_sampling.sample, triton_sampling.sample):
            workspace = SamplingWorkspace.allocate(len(SETTINGS), vocab_size, device)
            out_S = torch.full((len(SETTINGS),), -9, dtype=torch.int32, device=device)
            kernel(logits_SV, *columns, out_S, workspace=workspace)
            tokens.append(out_S)
        num_differing += int((tokens[0] != tokens[1]).sum())
    return num_differing


def _logprobs(vocab_size: int, device: torch.device) -> float:
    torch.manual_seed(2)
    logits_LV = 4 * torch.randn(5, vocab_size, device=device)
    ints = {"dtype": torch.int32, "device": device}
    rows_S, tokens_S = (
        torch.tensor([4, 0, 3, 1], **ints),
        torch.tensor([0, vocab_size - 1, vocab_size // 2, -1], **ints),
    )
    named_SM = torch.tensor([[1, -1, vocab_size - 1]] * 4, **ints)
    results = []
    for kernel in (torch_logprobs.logprobs, triton_logprobs.logprobs):
        workspace = LogprobsWorkspace.allocate(4, vocab_size, device)
        out = (
            torch.empty(4, device=device),
            torch.empty(4, 3, device=device),
            torch.empty(4, 5, **ints),
            torch.empty(4, 5, device=device),
        )
        kernel(logits_LV, rows_S, tokens_S, named_SM, *out, workspace=workspace)
        results.append(out)
    return max(difference(ours.float(), theirs.float()) for ours, theirs in zip(results[1], results[0], strict=True))


def _processors(vocab_size: int, device: torch.device) -> int:
    """Of rows that use each control and all: values and tokens that differ."""
    generator = np.random.default_rng(3)
    draw = DrawnAdmits(generator, vocab_size)
    logits_SV = random_logits(generator, 2 * len(KINDS), vocab_size)
    admits = [draw.draw(kind) for kind in KINDS for _ in range(2)]
    both = [
        processed(kernels, logits_SV, admits, device)
        for kernels in (reference_kernels(), triton_kernels(overlap=False))
    ]
    return sum(int((ours != theirs).sum()) for ours, theirs in zip(*both, strict=True))
