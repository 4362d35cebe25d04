"""Logit processors, in torch: what a sequence's own controls and penalties make of its logits, before a token is drawn.

The arithmetic, in float32, and its order are those of `pagewire.worker.sampling.processors`, to the bit; a slot's
controls and ids are its row of `pagewire.worker.kernels.controls`.
"""

from itertools import pairwise

import torch

from pagewire.worker.kernels import controls as c
from pagewire.worker.kernels.contract import SlotTensors, parameter_S
from pagewire.worker.kernels.workspaces import ChangedRows


def process(
    logits_SV: torch.Tensor,
    changed_CF: torch.Tensor,
    slots: SlotTensors,
    rows: ChangedRows,
    *,
    has_masks: bool,
) -> None:
    """Fills the first C of `rows.logits_CV` with what becomes of each changed row's logits. With `has_masks`, what is
    not in `rows.masks_CW` may not be; else these are not read.

    logits_SV     float32 or bfloat16, rows contiguous; only read
    changed_CF    int32 [C, CHANGED_FIELDS], contiguous; see `pagewire.worker.kernels.contract`

    Raises ValueError for more rows than fit, or logits of another vocabulary.
    """
    rows.check(logits_SV, changed_CF)
    layout = rows.layout
    for index, (row, slot, position) in enumerate(changed_CF.tolist()):
        slot = max(slot, 0)
        control_W = rows.control_RW[slot]
        ids_L = control_W[layout.ids : layout.ids + position].to(torch.int64)
        logits_V = logits_SV[row].float().clone()
        num_bias, num_words, _, min_tokens, prompt_len, *_ = control_W[: c.BIAS_IDS].tolist()
        bias_ids = control_W[c.BIAS_IDS : c.BIAS_IDS + num_bias].to(torch.int64)
        logits_V[bias_ids] += control_W[c.BIAS_VALUES : c.BIAS_VALUES + num_bias].view(torch.float32)
        parameters = {
            name: parameter_S(slots.sampling_RP[slot : slot + 1], name)[0]
            for name in ("repetition_penalty", "frequency_penalty", "presence_penalty")
        }
        _penalize(logits_V, ids_L, prompt_len, **parameters)
        mask = layout.early_mask if position - prompt_len < min_tokens else c.MASKS
        _take_out(logits_V, control_W[mask : mask + layout.mask_words])
        starts = control_W[c.WORD_STARTS : c.WORD_STARTS + num_words + 1].tolist()
        for start, end in pairwise(starts):
            word = control_W[c.WORD_IDS + start : c.WORD_IDS + end].tolist()
            if position >= len(word) - 1 and ids_L[position - len(word) + 1 :].tolist() == word[:-1]:
                logits_V[word[-1]] = -torch.inf
        if has_masks:
            _take_out(logits_V, rows.masks_CW[index])
        rows.logits_CV[index] = logits_V


def _penalize(
    logits_V: torch.Tensor,
    ids_L: torch.Tensor,
    prompt_len: int,
    *,
    repetition_penalty: torch.Tensor,
    frequency_penalty: torch.Tensor,
    presence_penalty: torch.Tensor,
) -> None:
    known_V = torch.bincount(ids_L, minlength=len(logits_V)) > 0
    penalized_V = torch.where(logits_V < 0, logits_V * repetition_penalty, logits_V / repetition_penalty)
    logits_V.copy_(torch.where(known_V, penalized_V, logits_V))
    counts_V = torch.bincount(ids_L[prompt_len:], minlength=len(logits_V))
    lessened_V = logits_V - frequency_penalty * counts_V.float() - presence_penalty
    logits_V.copy_(torch.where(counts_V > 0, lessened_V, logits_V))


def _take_out(logits_V: torch.Tensor, mask_W: torch.Tensor) -> None:
    bits_WB = mask_W[:, None] >> torch.arange(32, dtype=torch.int32, device=mask_W.device)
    logits_V[(bits_WB & 1).flatten()[: len(logits_V)] == 0] = -torch.inf


def finish_changed(
    changed_CF: torch.Tensor,
    tokens_C: torch.Tensor,
    tokens_S: torch.Tensor,
    slots: SlotTensors,
    rows: ChangedRows,
) -> None:
    """After sampling: what each changed row sampled (int32) is the step's token, its slot's last token, and among its
    ids. A row that could not sample goes on with id 0."""
    for (row, slot, position), token in zip(changed_CF.tolist(), tokens_C, strict=True):
        if slot < 0:
            continue
        tokens_S[row] = token
        slots.last_token_R[slot] = token.clamp(min=0)
        rows.control_RW[slot, rows.layout.ids + position] = token.clamp(min=0)
