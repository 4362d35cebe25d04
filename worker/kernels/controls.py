"""Control rows: what a slot whose logits are changed keeps on a device, as one row of 32-bit words.

    counts and numbers │ bias: ids, values │ bad words: where each begins, their ids │ masks of ids │ the sequence's ids

A row is written whole by an admission, so nothing of the slot's last holder is left in what is read; the ids grow by
what is sampled. Two masks have a bit for each id, from the lowest of each word up: those that may be at all, and those
that may be before min_tokens. Everything but the ids is of one size for every admission, within the wire's limits.
"""

from dataclasses import dataclass

import numpy as np

from pagewire.wire.columns import Int32Array, unpack
from pagewire.wire.logits import MAX_BAD_WORD_IDS, MAX_BAD_WORDS, MAX_LOGIT_BIAS, LogitControls
from pagewire.wire.plan import Admit

NUM_BIAS, NUM_WORDS, LONGEST_WORD, MIN_TOKENS, PROMPT_LEN = range(5)
"""Indices of a row's numbers. The longest bad word is counted without its last id."""
BIAS_IDS = 8
BIAS_VALUES = BIAS_IDS + MAX_LOGIT_BIAS
WORD_STARTS = BIAS_VALUES + MAX_LOGIT_BIAS
WORD_IDS = WORD_STARTS + MAX_BAD_WORDS + 8
MASKS = WORD_IDS + MAX_BAD_WORD_IDS
"""Where a row's parts begin: one start more than there are words, and rounded to eight."""


@dataclass(frozen=True, slots=True)
class ControlLayout:
    """Of rows for one vocabulary and one greatest length."""

    vocab_size: int
    max_model_len: int

    @property
    def mask_words(self) -> int:
        return -(-self.vocab_size // 32)

    @property
    def early_mask(self) -> int:
        """Where the second mask begins."""
        return MASKS + self.mask_words

    @property
    def ids(self) -> int:
        """Where the sequence's ids begin."""
        return self.early_mask + self.mask_words

    @property
    def row_words(self) -> int:
        """A multiple of four, so that every row is aligned alike. The last token is kept too."""
        return -(-(self.ids + self.max_model_len + 1) // 4) * 4

    def row_of(self, admit: Admit) -> Int32Array:
        """The beginning of a row, through the last id that is known."""
        tokens = unpack(admit.tokens)
        controls = admit.controls or LogitControls()
        row = np.zeros(self.ids + len(tokens), np.int32)
        bias = unpack(controls.bias_ids)
        row[BIAS_IDS : BIAS_IDS + len(bias)] = bias
        row[BIAS_VALUES : BIAS_VALUES + len(bias)] = unpack(controls.bias_values)  # the bits of float32
        words = [unpack(word) for word in controls.bad_words]
        sizes = [len(word) for word in words]
        row[WORD_STARTS + 1 : WORD_STARTS + 1 + len(words)] = np.cumsum(sizes)
        if words:
            row[WORD_IDS : WORD_IDS + sum(sizes)] = np.concatenate(words)
        may_be = self._mask(unpack(controls.banned_ids), unpack(controls.allowed_ids))
        row[MASKS : self.early_mask] = may_be
        row[self.early_mask : self.ids] = may_be & self._mask(unpack(controls.end_ids))
        row[self.ids :] = tokens
        row[NUM_BIAS], row[NUM_WORDS], row[LONGEST_WORD] = len(bias), len(words), max(sizes, default=1) - 1
        row[MIN_TOKENS], row[PROMPT_LEN] = controls.min_tokens, admit.prompt_len
        return row

    def _mask(self, banned: Int32Array, allowed: Int32Array | None = None) -> Int32Array:
        is_allowed = np.ones(self.mask_words * 32, np.bool_)
        if allowed is not None and len(allowed):
            is_allowed[:] = False
            is_allowed[allowed] = True
        is_allowed[banned] = False
        return np.packbits(is_allowed, bitorder="little").view(np.int32)
