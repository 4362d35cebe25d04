"""Logit processors in Triton: three launches, whatever the rows ask for.

Signatures and results as in `pagewire.worker.kernels.reference.processors`, the definition, to the bit.

    _copy_row   (row, chunk)  the chunk's logits in fp32, and no marks
    _mark       (row, part)   part 0: bias, each id once; and a mark on what would end a bad word. Others: the
                              sequence's ids are marked, a part of them each: prompt or output, and how often
    _process    (row, chunk)  penalties by the marks, and minus infinity by marks and masks

And `_take_tokens`, one program per _FINISHED rows, when they are sampled.

A mark is a word of bits and a count, and changes by atomic operations on integers, whose order changes nothing. What
was generated is counted anew in every step, from the ids: there is no other state that could be wrong after a
preemption. Floor in bytes per row of V logits of 2 bytes and L ids: 26 V + 8 L, for Qwen3 4 MB or 1 µs of an H200.
"""

import torch
import triton
import triton.language as tl

from pagewire.wire.columns import ROW_WORDS, first_word
from pagewire.wire.logits import MAX_BAD_WORDS, MAX_LOGIT_BIAS
from pagewire.worker.kernels import controls
from pagewire.worker.kernels.contract import SlotTensors
from pagewire.worker.kernels.workspaces import CHANGED_FIELDS, CHUNK, ChangedRows

_MAX_PARTS = 8
"""Programs that share a sequence's ids."""
_IDS = 1024
_FINISHED = 64

_IN_PROMPT, _IS_OUT = tl.constexpr(1 << 30), tl.constexpr(-(1 << 31))
_COUNT = tl.constexpr((1 << 30) - 1)

_ROW_WORDS, _FIELDS = tl.constexpr(ROW_WORDS), tl.constexpr(CHANGED_FIELDS)
_REPETITION = tl.constexpr(first_word("repetition_penalty"))
_FREQUENCY = tl.constexpr(first_word("frequency_penalty"))
_PRESENCE = tl.constexpr(first_word("presence_penalty"))

_NUM_BIAS, _BIAS_IDS, _BIAS_VALUES = (
    tl.constexpr(controls.NUM_BIAS),
    tl.constexpr(controls.BIAS_IDS),
    tl.constexpr(controls.BIAS_VALUES),
)
_NUM_WORDS, _WORD_STARTS, _WORD_IDS = (
    tl.constexpr(controls.NUM_WORDS),
    tl.constexpr(controls.WORD_STARTS),
    tl.constexpr(controls.WORD_IDS),
)
_LONGEST_WORD, _MASKS = tl.constexpr(controls.LONGEST_WORD), tl.constexpr(controls.MASKS)
_MIN_TOKENS, _PROMPT_LEN = tl.constexpr(controls.MIN_TOKENS), tl.constexpr(controls.PROMPT_LEN)


def process(
    logits_SV: torch.Tensor,
    changed_CF: torch.Tensor,
    slots: SlotTensors,
    rows: ChangedRows,
    *,
    has_masks: bool,
) -> None:
    """See `pagewire.worker.kernels.reference.processors.process`."""
    rows.check(logits_SV, changed_CF)
    num_rows, vocab_size = changed_CF.shape[0], logits_SV.shape[1]
    if num_rows == 0:
        return
    layout = rows.layout
    chunk = min(CHUNK, triton.next_power_of_2(vocab_size))
    by_chunk = num_rows, triton.cdiv(vocab_size, chunk)
    _copy_row[by_chunk](
        logits_SV, logits_SV.stride(0), changed_CF, rows.logits_CV, rows.marks_CV, VOCAB=vocab_size, CHUNK=chunk
    )
    _mark[(num_rows, 1 + min(_MAX_PARTS, triton.cdiv(layout.max_model_len, _IDS)))](
        changed_CF, rows.control_RW, rows.logits_CV, rows.marks_CV,
        VOCAB=vocab_size, CONTROL_WORDS=layout.row_words, IDS=layout.ids, BIAS_BLOCK=MAX_LOGIT_BIAS,
        WORDS_BLOCK=MAX_BAD_WORDS, ID_BLOCK=_IDS,
    )  # fmt: skip
    # Contracted to one operation, product and difference would not be rounded as the definition rounds them.
    _process[by_chunk](
        changed_CF, slots.sampling_RP, rows.control_RW, rows.logits_CV, rows.marks_CV, rows.masks_CW,
        VOCAB=vocab_size, CHUNK=chunk, CONTROL_WORDS=layout.row_words, EARLY_MASK=layout.early_mask,
        MASK_WORDS=layout.mask_words, HAS_MASKS=has_masks, enable_fp_fusion=False,
    )  # fmt: skip


def finish_changed(
    changed_CF: torch.Tensor,
    tokens_C: torch.Tensor,
    tokens_S: torch.Tensor,
    slots: SlotTensors,
    rows: ChangedRows,
) -> None:
    """See `pagewire.worker.kernels.reference.processors.finish_changed`."""
    num_rows = changed_CF.shape[0]
    if num_rows:
        _take_tokens[(triton.cdiv(num_rows, _FINISHED),)](
            changed_CF, tokens_C, tokens_S, slots.last_token_R, rows.control_RW, num_rows,
            CONTROL_WORDS=rows.layout.row_words, IDS=rows.layout.ids, ROWS=_FINISHED,
        )  # fmt: skip


@triton.jit
def _copy_row(logits_ptr, row_stride, changed_ptr, out_ptr, marks_ptr, VOCAB: tl.constexpr, CHUNK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64)
    row = tl.load(changed_ptr + index * _FIELDS).to(tl.int64)
    ids = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    exists = ids < VOCAB
    logits = tl.load(logits_ptr + row * row_stride + ids, mask=exists, other=0)
    tl.store(out_ptr + index * VOCAB + ids, logits.to(tl.float32), mask=exists)
    tl.store(marks_ptr + index * VOCAB + ids, tl.zeros((CHUNK,), tl.int32), mask=exists)


@triton.jit
def _mark(
    changed_ptr,
    controls_ptr,
    out_ptr,
    marks_ptr,
    VOCAB: tl.constexpr,
    CONTROL_WORDS: tl.constexpr,
    IDS: tl.constexpr,
    BIAS_BLOCK: tl.constexpr,
    WORDS_BLOCK: tl.constexpr,
    ID_BLOCK: tl.constexpr,
):
    index, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.maximum(tl.load(changed_ptr + index * _FIELDS + 1), 0)
    position = tl.load(changed_ptr + index * _FIELDS + 2)
    control_ptr = controls_ptr + slot.to(tl.int64) * CONTROL_WORDS
    row_ids_ptr = control_ptr + IDS
    out_row_ptr, marks_row_ptr = out_ptr + index * VOCAB, marks_ptr + index * VOCAB
    if part == 0:
        place = tl.arange(0, BIAS_BLOCK)
        is_biased = place < tl.load(control_ptr + _NUM_BIAS)
        ids = tl.load(control_ptr + _BIAS_IDS + place, mask=is_biased, other=0)
        bias = tl.load(control_ptr + _BIAS_VALUES + place, mask=is_biased, other=0).to(tl.float32, bitcast=True)
        logits = tl.load(out_row_ptr + ids, mask=is_biased, other=0)
        tl.store(out_row_ptr + ids, logits + bias, mask=is_biased)

        word = tl.arange(0, WORDS_BLOCK)
        exists = word < tl.load(control_ptr + _NUM_WORDS)
        first = tl.load(control_ptr + _WORD_STARTS + word, mask=exists, other=0)
        last = tl.load(control_ptr + _WORD_STARTS + 1 + word, mask=exists, other=1) - 1
        num_others = last - first
        is_begun = exists & (num_others <= position)
        for at in range(tl.load(control_ptr + _LONGEST_WORD)):
            is_read = is_begun & (at < num_others)
            wanted = tl.load(control_ptr + _WORD_IDS + first + at, mask=is_read, other=0)
            written = tl.load(row_ids_ptr + position - num_others + at, mask=is_read, other=0)
            is_begun = is_begun & (wanted == written)
        id_out = tl.load(control_ptr + _WORD_IDS + last, mask=is_begun, other=0)
        tl.atomic_or(marks_row_ptr + id_out, tl.full((WORDS_BLOCK,), _IS_OUT, tl.int32), mask=is_begun, sem="relaxed")
    else:
        prompt_len = tl.load(control_ptr + _PROMPT_LEN)
        for start in range((part - 1) * ID_BLOCK, position, (tl.num_programs(1) - 1) * ID_BLOCK):
            at = start + tl.arange(0, ID_BLOCK)
            ids = tl.load(row_ids_ptr + at, mask=at < position, other=0)
            ones = tl.full((ID_BLOCK,), 1, tl.int32)
            tl.atomic_or(
                marks_row_ptr + ids, ones * _IN_PROMPT, mask=at < tl.minimum(position, prompt_len), sem="relaxed"
            )
            tl.atomic_add(marks_row_ptr + ids, ones, mask=(at >= prompt_len) & (at < position), sem="relaxed")


@triton.jit
def _process(
    changed_ptr,
    sampling_ptr,
    controls_ptr,
    out_ptr,
    marks_ptr,
    masks_ptr,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
    CONTROL_WORDS: tl.constexpr,
    EARLY_MASK: tl.constexpr,
    MASK_WORDS: tl.constexpr,
    HAS_MASKS: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64)
    slot = tl.maximum(tl.load(changed_ptr + index * _FIELDS + 1), 0)
    position = tl.load(changed_ptr + index * _FIELDS + 2)
    parameters_ptr = sampling_ptr + slot * _ROW_WORDS
    repetition = tl.load(parameters_ptr + _REPETITION).to(tl.float32, bitcast=True)
    frequency = tl.load(parameters_ptr + _FREQUENCY).to(tl.float32, bitcast=True)
    presence = tl.load(parameters_ptr + _PRESENCE).to(tl.float32, bitcast=True)
    control_ptr = controls_ptr + slot.to(tl.int64) * CONTROL_WORDS
    num_generated = position - tl.load(control_ptr + _PROMPT_LEN)
    mask = tl.where(num_generated < tl.load(control_ptr + _MIN_TOKENS), EARLY_MASK, _MASKS)

    ids = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    exists = ids < VOCAB
    logits = tl.load(out_ptr + index * VOCAB + ids, mask=exists, other=0)
    marks = tl.load(marks_ptr + index * VOCAB + ids, mask=exists, other=0)
    count = marks & _COUNT
    divisor = tl.zeros((CHUNK,), tl.float32) + repetition
    penalized = tl.where(logits < 0, logits * repetition, tl.div_rn(logits, divisor))
    logits = tl.where((marks & (_COUNT | _IN_PROMPT)) != 0, penalized, logits)
    lessened = logits - frequency * count.to(tl.float32) - presence
    logits = tl.where(count > 0, lessened, logits)
    word = tl.load(control_ptr + mask + (ids >> 5), mask=exists, other=0)
    if HAS_MASKS:
        word = word & tl.load(masks_ptr + index * MASK_WORDS + (ids >> 5), mask=exists, other=0)
    may_be = (((word >> (ids & 31)) & 1) != 0) & (marks >= 0)
    tl.store(out_ptr + index * VOCAB + ids, tl.where(may_be, logits, -float("inf")), mask=exists)


@triton.jit(do_not_specialize=["num_rows"])
def _take_tokens(
    changed_ptr,
    tokens_ptr,
    step_tokens_ptr,
    last_tokens_ptr,
    controls_ptr,
    num_rows,
    CONTROL_WORDS: tl.constexpr,
    IDS: tl.constexpr,
    ROWS: tl.constexpr,
):
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = index < num_rows
    row = tl.load(changed_ptr + index * _FIELDS, mask=exists, other=0)
    slot = tl.load(changed_ptr + index * _FIELDS + 1, mask=exists, other=-1)
    position = tl.load(changed_ptr + index * _FIELDS + 2, mask=exists, other=0)
    is_live = exists & (slot >= 0)
    token = tl.load(tokens_ptr + index, mask=is_live, other=0)
    tl.store(step_tokens_ptr + row, token, mask=is_live)
    going_on = tl.maximum(token, 0)
    tl.store(last_tokens_ptr + slot, going_on, mask=is_live)
    tl.store(controls_ptr + slot.to(tl.int64) * CONTROL_WORDS + IDS + position, going_on, mask=is_live)
