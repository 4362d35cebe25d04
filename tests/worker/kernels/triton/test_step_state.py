"""Resident slot state: Triton's kernels against their definition in torch."""

from random import Random

import pytest
import torch
from support.worker_plans import SMALL, PlanModel

from pagewire.worker.cuda.plan_packer import PlanPacker, packed_capacity
from pagewire.worker.cuda.slot_state import SlotLayout
from pagewire.worker.cuda.step_buffers import StepBuffers
from pagewire.worker.kernels.contract import SEQ_FIELDS, SlotTensors, StepTensors
from pagewire.worker.kernels.reference import step_state as definition
from pagewire.worker.kernels.triton import step_state as kernels
from pagewire.worker.slots.columns import SlotLimits
from pagewire.worker.slots.state import Slots

CPU = torch.device("cpu")
FIELDS = StepTensors.__slots__


def filled_slots(limits: SlotLimits, seed: int) -> SlotTensors:
    """Slots with plausible content."""
    slots = SlotLayout.of(limits).allocate(CPU)
    generator = torch.Generator().manual_seed(seed)
    slots.sampling_RP.copy_(torch.randint(-(2**31), 2**31 - 1, slots.sampling_RP.shape, generator=generator))
    slots.last_token_R.copy_(torch.randint(0, 90, slots.last_token_R.shape, generator=generator))
    # A context that ends at a border of a block, or just before or after it, among others.
    lengths = torch.randint(1, limits.max_model_len - 12, slots.length_R.shape, generator=generator)
    lengths[:4] = torch.tensor([limits.block_size - 1, limits.block_size, limits.block_size + 1, 0])
    slots.length_R.copy_(lengths)
    slots.cached_len_R.copy_(torch.randint(0, 3, lengths.shape, generator=generator) + lengths - 1)
    tables = slots.block_tables_RM
    tables.copy_(torch.randint(0, limits.num_blocks, tables.shape, generator=generator))
    return slots


def step_of(limits: SlotLimits) -> StepTensors:
    """A whole step's memory, with values in it that no kernel writes."""
    from pagewire.worker.cuda.step_buffers import StepShape

    rows = limits.max_num_batched_tokens
    seqs = limits.max_num_seqs
    shape = StepShape(((0, rows - seqs + 1, 1), *((row, 1, 1) for row in range(rows - seqs + 1, rows))), 0, seqs)
    step = StepBuffers(limits, packed_capacity(limits), CPU).tensors(shape)
    for name in FIELDS:
        getattr(step, name).fill_(77)
    return step


def assert_same(got: StepTensors, expected: StepTensors) -> None:
    for name in FIELDS:
        assert torch.equal(getattr(got, name), getattr(expected, name)), name


def both_prepare(limits: SlotLimits, seqs: list[tuple[int, ...]], num_ids: int, seed: int) -> None:
    slots, got, expected = filled_slots(limits, seed), step_of(limits), step_of(limits)
    before = slots.arena.clone()
    ids = torch.arange(num_ids, dtype=torch.int32) + 3
    seqs_BQ = torch.tensor(seqs, dtype=torch.int32)
    max_rows = max(rows for _, _, rows, _, _ in seqs)
    for kind, step in ((kernels, got), (definition, expected)):
        kind.prepare_step(slots, seqs_BQ, ids, step, block_size=limits.block_size, max_rows=max_rows)
    assert_same(got, expected)
    assert torch.equal(slots.arena, before)


@pytest.mark.parametrize("num_padding", [0, 1, 3])
@pytest.mark.parametrize("num_decodes", [1, 4, 5])
def test_prepare_decodes(num_decodes: int, num_padding: int) -> None:
    slots = Random(num_decodes).sample(range(8), num_decodes)
    seqs = [(slot, row, 1, -1, row) for row, slot in enumerate(slots)]
    seqs += [(-1, row, 1, -1, row) for row in range(num_decodes, num_decodes + num_padding)]
    limits = SlotLimits(
        max_num_seqs=8, max_model_len=40, max_num_batched_tokens=24, block_size=4, num_blocks=40, vocab_size=100
    )
    both_prepare(limits, seqs, 0, num_decodes)


def test_prepare_nothing_but_padding() -> None:
    both_prepare(SMALL, [(-1, row, 1, -1, row) for row in range(4)], 0, 1)
    both_prepare(SMALL, [(-1, 0, 9, -1, 0), (-1, 9, 1, -1, 1)], 0, 1)


def test_prepare_a_mixed_batch() -> None:
    """Decoding slots, a chunk that ends its prefill, one that does not, one of a single row."""
    seqs = [(4, 0, 1, -1, 0), (1, 1, 1, -1, 1), (0, 2, 9, 0, 2), (2, 11, 6, 9, -1), (3, 17, 1, 15, 3)]
    both_prepare(SMALL, seqs, 16, 2)


def test_prepare_parts_and_columns_of_more_than_one_program() -> None:
    limits = SlotLimits(
        max_num_seqs=4, max_model_len=3000, max_num_batched_tokens=400, block_size=2, num_blocks=5000, vocab_size=100
    )
    both_prepare(limits, [(2, 0, 1, -1, 0), (3, 1, 300, 0, 1), (1, 301, 64, 300, -1)], 364, 3)


@pytest.mark.parametrize("num_changes", [0, 1, 1024, 1500])
def test_apply_changes(num_changes: int) -> None:
    limits = SlotLimits(
        max_num_seqs=8, max_model_len=1000, max_num_batched_tokens=8, block_size=4, num_blocks=900, vocab_size=100
    )
    got, expected = filled_slots(limits, 1), filled_slots(limits, 1)
    indices = torch.randperm(len(got.arena), generator=torch.Generator().manual_seed(2))[:num_changes].to(torch.int32)
    values = torch.arange(num_changes, dtype=torch.int32) - 5
    kernels.apply_changes(got, indices, values)
    definition.apply_changes(expected, indices, values)
    assert torch.equal(got.arena, expected.arena)


def test_finish_step() -> None:
    """A row that could not sample goes on with id 0; padding and chunks in the middle of a prompt leave no token."""
    seqs = [(5, 0, 1, -1, 0), (1, 1, 1, -1, 1), (0, 2, 9, 0, -1), (3, 11, 6, 9, 2), (-1, 17, 1, -1, 3)]
    seqs_BQ, tokens_S = torch.tensor(seqs, dtype=torch.int32), torch.tensor([44, -1, 46, 47], dtype=torch.int32)
    got, expected = filled_slots(SMALL, 4), filled_slots(SMALL, 4)
    before = filled_slots(SMALL, 4)
    kernels.finish_step(got, seqs_BQ, tokens_S)
    definition.finish_step(expected, seqs_BQ, tokens_S)
    assert torch.equal(got.arena, expected.arena)
    assert [int(got.last_token_R[slot]) for slot in (5, 1, 3)] == [44, 0, 46]
    assert got.last_token_R[[0, 2, 4]].tolist() == before.last_token_R[[0, 2, 4]].tolist()
    assert (got.length_R - before.length_R).tolist() == [9, 1, 0, 6, 0, 1]


def test_finish_more_sequences_than_a_program_has() -> None:
    limits = SlotLimits(
        max_num_seqs=300, max_model_len=40, max_num_batched_tokens=300, block_size=4, num_blocks=40, vocab_size=100
    )
    seqs_BQ = torch.tensor([(slot, slot, 1, -1, slot) for slot in range(300)], dtype=torch.int32)
    slots = filled_slots(limits, 1)
    lengths = slots.length_R.clone()
    kernels.finish_step(slots, seqs_BQ, torch.arange(300, dtype=torch.int32))
    assert slots.last_token_R.tolist() == list(range(300))
    assert torch.equal(slots.length_R, lengths + 1)


def test_a_stream_of_plans() -> None:
    """Both kinds of kernels follow random plans word by word."""
    plans, host = PlanModel(SMALL, Random(8)), Slots(SMALL)
    host.begin(1)
    packer, packed_words = PlanPacker(host.columns, SMALL), packed_capacity(SMALL)
    packed = torch.zeros(packed_words, dtype=torch.int32)
    layout = SlotLayout.of(SMALL)
    got, expected = layout.allocate(CPU), layout.allocate(CPU)
    for index in range(12):
        step = host.apply(plans.step()[0])
        num_seqs = len(step.decode_slots) + len(step.chunks)
        plan = packer.pack(step, num_seqs, packed.numpy())
        changes = packed[plan.changes_start : plan.num_words].view(2, -1)
        seqs_BQ = packed[: num_seqs * SEQ_FIELDS].view(-1, SEQ_FIELDS)
        tokens_S = torch.arange(len(step.sample_slots), dtype=torch.int32) + index
        out = []
        for kind, slots in ((kernels, got), (definition, expected)):
            kind.apply_changes(slots, changes[0], changes[1])
            out.append(step_of(SMALL))
            if num_seqs:
                ids = packed[plan.ids_start :]
                most = max([1, *(len(chunk.tokens) for chunk in step.chunks)])
                kind.prepare_step(slots, seqs_BQ, ids, out[-1], block_size=SMALL.block_size, max_rows=most)
                kind.finish_step(slots, seqs_BQ, tokens_S)
        assert_same(*out)
        assert torch.equal(got.arena, expected.arena)
        live = host.columns.occupied
        assert got.length_R.numpy()[live].tolist() == host.columns.num_computed[live].tolist()
