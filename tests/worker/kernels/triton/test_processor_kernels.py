"""Logit processors, interpreted in fp32, against their definition and transformers' own classes."""

import os

import numpy as np
import pytest
import torch
from support.device_processors import processed
from support.device_runner import REFERENCE
from support.drawn_admits import FILTERS, KINDS, DrawnAdmits, random_logits
from support.processors import judged, judged_token

from pagewire.wire.columns import pack
from pagewire.wire.logits import LogitControls
from pagewire.wire.plan import Admit
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.kernels.sets import triton_kernels

TRITON = triton_kernels(overlap=False)
NUM_ROWS = 100 * int(os.environ.get("PAGEWIRE_TEST_REPEATS", "1"))
"""Of each kind. The interpreter takes 30 ms a row."""
PER_STEP = 100
VOCAB_SIZE = 250


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_transformers_to_the_bit_and_tokens_the_inverse_of_its_distribution(kind: str) -> None:
    generator = np.random.default_rng(len(kind) + 300)
    draw, num_near = DrawnAdmits(generator, VOCAB_SIZE), 0
    for first in range(0, NUM_ROWS, PER_STEP):
        logits_SV = random_logits(generator, PER_STEP, VOCAB_SIZE)
        admits = [draw.draw(kind, **FILTERS[(first + row) % len(FILTERS)]) for row in range(PER_STEP)]
        values_SV, tokens_S = processed(TRITON, logits_SV, admits)
        for logits_V, admit, values_V in zip(logits_SV, admits, values_SV, strict=True):
            assert torch.equal(values_V, judged(logits_V, admit)), admit
        num_near += sum(not judged_token(*row) for row in zip(logits_SV, admits, tokens_S.tolist(), strict=True))
    assert num_near < NUM_ROWS / 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_chunks_and_rows_that_are_no_distribution(dtype: torch.dtype) -> None:
    generator = np.random.default_rng(1)
    draw = DrawnAdmits(generator, 5000)
    logits_SV = random_logits(generator, 4, 5000).to(dtype)
    logits_SV[1, 4000] = torch.nan
    logits_SV[2, :3000] = -torch.inf
    controls = LogitControls(allowed_ids=pack([7]), banned_ids=pack([7]))
    admits = [draw.draw("everything") for _ in range(3)]
    admits.append(Admit(0, pack([1]), 1, 0, pack([0]), SamplingParams(), controls))
    ours, theirs = (processed(kernels, logits_SV, admits) for kernels in (TRITON, REFERENCE))
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0, equal_nan=True)
