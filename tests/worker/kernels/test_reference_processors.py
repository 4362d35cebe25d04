"""Logit processors of devices, in torch: values and tokens as transformers' own classes give them."""

import numpy as np
import pytest
import torch
from support.device_processors import processed
from support.device_runner import REFERENCE
from support.drawn_admits import FILTERS, KINDS, DrawnAdmits, random_logits
from support.processors import judged, judged_token

from pagewire.wire.columns import pack
from pagewire.wire.logits import MAX_BAD_WORD_IDS, MAX_BAD_WORDS, MAX_LOGIT_BIAS, LogitControls
from pagewire.wire.plan import Admit
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.kernels.controls import ControlLayout
from pagewire.worker.kernels.workspaces import ChangedRows

NUM_ROWS = 1000
VOCAB_SIZE = 400


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_transformers_to_the_bit_and_tokens_the_inverse_of_its_distribution(kind: str) -> None:
    generator = np.random.default_rng(len(kind) + 200)
    draw = DrawnAdmits(generator, VOCAB_SIZE)
    logits_SV = random_logits(generator, NUM_ROWS, VOCAB_SIZE)
    admits = [draw.draw(kind, **FILTERS[row % len(FILTERS)]) for row in range(NUM_ROWS)]
    values_SV, tokens_S = processed(REFERENCE, logits_SV, admits)
    for logits_V, admit, values_V in zip(logits_SV, admits, values_SV, strict=True):
        assert torch.equal(values_V, judged(logits_V, admit)), admit
    rows = zip(logits_SV, admits, tokens_S.tolist(), strict=True)
    assert sum(not judged_token(*row) for row in rows) < NUM_ROWS / 20


def test_a_row_holds_as_much_as_the_wire_allows() -> None:
    vocab_size = 2 * MAX_LOGIT_BIAS
    size = MAX_BAD_WORD_IDS // MAX_BAD_WORDS
    words = [pack(np.arange(first, first + size)) for first in range(MAX_BAD_WORDS)]
    controls = LogitControls(
        bias_ids=pack(np.arange(MAX_LOGIT_BIAS)),
        bias_values=np.full(MAX_LOGIT_BIAS, 1.5, "<f4").tobytes(),
        bad_words=words,
        banned_ids=pack([vocab_size - 1]),
    )
    tokens = list(range(MAX_BAD_WORDS - 1, MAX_BAD_WORDS + size - 2))  # all of the last word but its last id
    admit = Admit(0, pack(tokens), 3, 0, pack([0]), SamplingParams(), controls)
    values_SV, _ = processed(REFERENCE, torch.ones(1, vocab_size), [admit])
    expected = torch.ones(vocab_size)
    expected[:MAX_LOGIT_BIAS] += 1.5
    expected[[MAX_BAD_WORDS + size - 2, vocab_size - 1]] = -torch.inf
    assert torch.equal(values_SV[0], expected)


def test_what_does_not_fit_is_refused() -> None:
    rows = ChangedRows.allocate(2, 2, ControlLayout(10, 8), torch.device("cpu"))
    changed_CF = torch.zeros(3, 3, dtype=torch.int32)
    with pytest.raises(ValueError, match="logits have 11 ids, the workspace 10"):
        rows.check(torch.zeros(2, 11), changed_CF)
    with pytest.raises(ValueError, match="3 rows change; the workspace is for 2"):
        rows.check(torch.zeros(2, 10), changed_CF)
    with pytest.raises(ValueError, match=r"torch.int64 \(2, 3\); they are int32 \[C, 3\]"):
        rows.check(torch.zeros(2, 10), changed_CF[:2].long())
