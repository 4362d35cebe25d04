"""The small parts of the step on a device."""

from itertools import pairwise
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.worker_plans import SMALL, PlanMaker, admit

from pagewire.wire.columns import ROW_WORDS
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.attention.choice import CudaCard, attention_candidates
from pagewire.worker.cuda.graphs import padded_size, padded_sizes
from pagewire.worker.cuda.plan_packer import PlanPacker, packed_capacity
from pagewire.worker.cuda.slot_state import SlotLayout
from pagewire.worker.cuda.step_buffers import StepShape
from pagewire.worker.kernels.contract import SEQ_FIELDS, parameter_S
from pagewire.worker.kernels.reference import step_state
from pagewire.worker.slots.state import Slots


@pytest.mark.parametrize(
    ("max_num_seqs", "sizes"),
    [
        (1, [1]),
        (2, [1, 2]),
        (5, [1, 2, 4, 5]),
        (8, [1, 2, 4, 8]),
        (9, [1, 2, 4, 8, 9]),
        (40, [1, 2, 4, 8, 16, 24, 32, 40]),
    ],
)
def test_sizes_that_are_captured(max_num_seqs: int, sizes: list[int]) -> None:
    assert padded_sizes(max_num_seqs) == sizes


@given(max_num_seqs=st.integers(1, 300), data=st.data())
def test_a_batch_goes_into_the_least_captured_size(max_num_seqs: int, data: st.DataObject) -> None:
    num_seqs = data.draw(st.integers(1, max_num_seqs))
    assert padded_size(num_seqs, max_num_seqs) == min(s for s in padded_sizes(max_num_seqs) if s >= num_seqs)


def test_the_layout_fills_its_arena_without_overlap() -> None:
    layout = SlotLayout(num_slots=3, table_len=5)
    slots = layout.allocate(torch.device("cpu"))
    columns = [
        slots.sampling_RP,
        slots.last_token_R,
        slots.length_R,
        slots.cached_len_R,
        slots.block_tables_RM,
    ]
    spans = sorted((c.data_ptr(), c.data_ptr() + c.nbytes) for c in columns)
    assert spans[0][0] == slots.arena.data_ptr()
    assert spans[-1][1] == slots.arena.data_ptr() + slots.arena.nbytes
    assert all(end == start for (_, end), (start, _) in pairwise(spans))


def test_a_packed_plan_word_by_word() -> None:
    slots = Slots(SMALL)
    slots.begin(1)
    packer, maker = PlanPacker(slots.columns, SMALL), PlanMaker()
    out = torch.zeros(packed_capacity(SMALL), dtype=torch.int32).numpy()
    layout = SlotLayout.of(SMALL)
    drawn = SamplingParams(temperature=0.5, top_k=7, top_p=0.25, seed=2**64 - 2)

    plan = maker.make(admits=[admit(3, [9, 8, 7, 6, 5], [11, 12], cached=4, sampling=drawn)], chunks=[(3, 1)])
    packed = packer.pack(slots.apply(plan), 1, out)
    assert (packed.num_seqs, packed.num_ids, packed.num_changes) == (1, 1, ROW_WORDS + 2 + 2)
    assert out[: SEQ_FIELDS + 1].tolist() == [3, 0, 1, 0, 0, 5]  # slot, row, rows, first id, sample; the id
    device = layout.allocate(torch.device("cpu"))
    words = torch.from_numpy(out[packed.changes_start : packed.num_words]).view(2, -1)
    step_state.apply_changes(device, words[0], words[1])
    assert device.length_R.tolist() == [0, 0, 0, 4, 0, 0]
    assert device.cached_len_R.tolist() == [0, 0, 0, 4, 0, 0]
    asked = [parameter_S(device.sampling_RP, name)[3].item() for name in ("top_k", "temperature", "top_p", "seed")]
    assert asked == [7, 0.5, 0.25, -2]  # of the seed the same 64 bits
    assert device.block_tables_RM[3, :3].tolist() == [11, 12, 0]
    assert not device.block_tables_RM[:3].any()

    # A table that grows in the plan of its admission is written once, as it stands then.
    plan = maker.make(admits=[admit(0, [1], [1])], grow=[(3, 13), (0, 2)], chunks=[(0, 1)])
    packed = packer.pack(slots.apply(plan), 2, out)
    indices = out[packed.changes_start :][: packed.num_changes].tolist()
    assert len(set(indices)) == len(indices) == 1 + (ROW_WORDS + 2) + 2
    assert out[: 2 * SEQ_FIELDS].reshape(2, -1).tolist() == [[3, 0, 1, -1, 0], [0, 1, 1, 0, 1]]

    # Nothing changes, one sequence decodes, and padding follows it.
    packed = packer.pack(slots.apply(maker.make(idle=[0])), 2, out)
    assert (packed.num_words, packed.num_changes) == (2 * SEQ_FIELDS, 0)
    assert out[: 2 * SEQ_FIELDS].reshape(2, -1).tolist() == [[3, 0, 1, -1, 0], [-1, 1, 1, -1, 1]]


def test_shapes() -> None:
    shape = StepShape.of_decodes(4, 100)
    assert (shape.num_seqs, shape.num_rows, shape.max_rows, shape.num_samples) == (4, 4, 1, 4)
    mixed = StepShape(((0, 1, 9), (1, 6, 6)), 1, 1)
    assert (mixed.num_seqs, mixed.num_rows, mixed.max_rows) == (2, 7, 6)


@pytest.mark.parametrize("error", [AttributeError("no attribute 'x'"), TypeError("x\ny"), OSError(), RuntimeError("x")])
def test_a_package_that_breaks_as_it_is_imported_is_no_rung(error: Exception) -> None:
    def import_module(name: str) -> ModuleType:
        if name == "triton":
            return ModuleType(name)
        raise error

    card = CudaCard(name="H200", capability=(9, 0), num_sms=132)
    *flash, triton = attention_candidates(card, import_module)
    reason = str(error).partition("\n")[0] or type(error).__name__
    assert [candidate.missing for candidate in flash] == [
        f"{name} does not import: {reason}" for name in ("flash_attn_interface", "flash_attn")
    ]
    assert not triton.missing
