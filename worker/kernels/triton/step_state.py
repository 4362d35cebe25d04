"""Step state, resident on the device, in Triton: one scatter of a plan's changes, one gather of a step's inputs, one
update after it.

Signatures and results as in `pagewire.worker.kernels.reference.step_state`, the definition; layouts as in
`pagewire.worker.kernels.contract`. Nothing is read back to the host and no launch depends on a value on the device,
so `prepare_step` and `finish_step` can be captured in a CUDA graph: a graph made for B sequences runs any B of them.

    apply_changes    one program per _WORDS words
    prepare_step     programs (sequence, part): part p fills rows p · _ROWS …; part 0 also the sequence's own values and
                     its block table, _COLUMNS entries at a time
    finish_step      one program per _SEQS sequences

What differs from plan to plan (counts, and where in the packed plan a part begins) is not specialized on: a plan must
never wait for a compiler.
"""

import torch
import triton
import triton.language as tl

from pagewire.wire.columns import ROW_WORDS
from pagewire.worker.kernels.contract import SEQ_FIELDS, SlotTensors, StepTensors

_WORDS = 1024
_ROWS = 128
_COLUMNS = 1024
_SEQS = 256


def apply_changes(slots: SlotTensors, indices_C: torch.Tensor, values_C: torch.Tensor) -> None:
    """See `pagewire.worker.kernels.reference.step_state.apply_changes`."""
    num_changes = indices_C.shape[0]
    if num_changes:
        _scatter[(triton.cdiv(num_changes, _WORDS),)](slots.arena, indices_C, values_C, num_changes, WORDS=_WORDS)


def prepare_step(
    slots: SlotTensors, seqs_BQ: torch.Tensor, ids_C: torch.Tensor, step: StepTensors, *, block_size: int, max_rows: int
) -> None:
    """See `pagewire.worker.kernels.reference.step_state.prepare_step`."""
    table_len = slots.block_tables_RM.shape[1]
    rows = 1 if max_rows == 1 else _ROWS
    _prepare[(seqs_BQ.shape[0], triton.cdiv(max_rows, rows))](
        seqs_BQ,
        ids_C,
        slots.last_token_R,
        slots.length_R,
        slots.cached_len_R,
        slots.sampling_RP,
        slots.block_tables_RM,
        step.input_ids_T,
        step.positions_T,
        step.kv_positions_T,
        step.query_starts,
        step.context_lens_B,
        step.block_tables_BM,
        step.sample_rows_S,
        step.sampling_SP,
        step.sample_positions_S,
        table_len,
        step.block_tables_BM.stride(0),
        BLOCK_SIZE=block_size,
        FIELDS=SEQ_FIELDS,
        ROWS=rows,
        ROW_WORDS=ROW_WORDS,
        ROW_BLOCK=triton.next_power_of_2(ROW_WORDS),
        COLUMNS=min(_COLUMNS, triton.next_power_of_2(table_len)),
    )


def finish_step(slots: SlotTensors, seqs_BQ: torch.Tensor, tokens_S: torch.Tensor) -> None:
    """See `pagewire.worker.kernels.reference.step_state.finish_step`."""
    num_seqs = seqs_BQ.shape[0]
    _finish[(triton.cdiv(num_seqs, _SEQS),)](
        seqs_BQ, tokens_S, slots.length_R, slots.last_token_R, num_seqs, FIELDS=SEQ_FIELDS, SEQS=_SEQS
    )


@triton.jit(do_not_specialize=["indices", "values", "num_changes"])
def _scatter(arena, indices, values, num_changes, WORDS: tl.constexpr):
    at = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
    exists = at < num_changes
    index = tl.load(indices + at, mask=exists, other=0)
    tl.store(arena + index, tl.load(values + at, mask=exists, other=0), mask=exists)


@triton.jit(do_not_specialize=["ids"])
def _prepare(
    seqs,
    ids,
    last_tokens,
    lengths,
    cached_lens,
    parameters,
    tables,
    out_ids,
    out_positions,
    out_kv_positions,
    out_query_starts,
    out_context_lens,
    out_tables,
    out_sample_rows,
    out_parameters,
    out_sample_positions,
    table_len,
    out_table_stride,
    BLOCK_SIZE: tl.constexpr,
    FIELDS: tl.constexpr,
    ROWS: tl.constexpr,
    ROW_WORDS: tl.constexpr,
    ROW_BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    seq, part = tl.program_id(0), tl.program_id(1)
    slot = tl.load(seqs + seq * FIELDS)
    first_row = tl.load(seqs + seq * FIELDS + 1)
    num_rows = tl.load(seqs + seq * FIELDS + 2)
    first_id = tl.load(seqs + seq * FIELDS + 3)
    sample = tl.load(seqs + seq * FIELDS + 4)
    is_live = slot >= 0
    start = tl.load(lengths + slot, mask=is_live, other=0)
    cached_len = tl.load(cached_lens + slot, mask=is_live, other=0)
    last_token = tl.load(last_tokens + slot, mask=is_live, other=0)
    table = tables + slot.to(tl.int64) * table_len

    offset = part * ROWS + tl.arange(0, ROWS)
    exists = offset < num_rows
    row = first_row + offset
    position = start + offset
    given = tl.load(ids + first_id + offset, mask=exists & is_live & (first_id >= 0), other=0)
    tl.store(out_ids + row, tl.where(first_id >= 0, given, last_token).to(tl.int64), mask=exists)
    tl.store(out_positions + row, position.to(tl.int64), mask=exists)
    is_written = exists & is_live & (position >= cached_len)
    block = tl.load(table + position // BLOCK_SIZE, mask=is_written, other=0).to(tl.int64)
    kv_position = tl.where(is_written, block * BLOCK_SIZE + position % BLOCK_SIZE, -1)
    tl.store(out_kv_positions + row, kv_position, mask=exists)

    if part == 0:
        context_len = tl.where(is_live, start + num_rows, 0)
        if seq == 0:
            tl.store(out_query_starts, 0)
        tl.store(out_query_starts + seq + 1, first_row + num_rows)
        tl.store(out_context_lens + seq, context_len)
        num_blocks = (context_len + BLOCK_SIZE - 1) // BLOCK_SIZE
        for first in range(0, table_len, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            entry = tl.load(table + column, mask=column < num_blocks, other=0)
            tl.store(out_tables + seq.to(tl.int64) * out_table_stride + column, entry, mask=column < table_len)
        samples = sample >= 0
        tl.store(out_sample_rows + sample, (first_row + num_rows - 1).to(tl.int64), mask=samples)
        tl.store(out_sample_positions + sample, context_len.to(tl.int64), mask=samples)
        word = tl.arange(0, ROW_BLOCK)
        asked = tl.load(parameters + slot * ROW_WORDS + word, mask=samples & is_live & (word < ROW_WORDS), other=0)
        tl.store(out_parameters + sample * ROW_WORDS + word, asked, mask=samples & (word < ROW_WORDS))


@triton.jit(do_not_specialize=["num_seqs"])
def _finish(seqs, tokens, lengths, last_tokens, num_seqs, FIELDS: tl.constexpr, SEQS: tl.constexpr):
    seq = tl.program_id(0) * SEQS + tl.arange(0, SEQS)
    exists = seq < num_seqs
    slot = tl.load(seqs + seq * FIELDS, mask=exists, other=-1)
    num_rows = tl.load(seqs + seq * FIELDS + 2, mask=exists, other=0)
    sample = tl.load(seqs + seq * FIELDS + 4, mask=exists, other=-1)
    is_live = slot >= 0
    length = tl.load(lengths + slot, mask=is_live, other=0)
    tl.store(lengths + slot, length + num_rows, mask=is_live)
    samples = is_live & (sample >= 0)
    token = tl.load(tokens + sample, mask=samples, other=0)
    tl.store(last_tokens + slot, tl.maximum(token, 0), mask=samples)
