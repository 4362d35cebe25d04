"""Random rows with min-p, alone and behind the other filters, and which of their ids transformers leaves."""

from dataclasses import dataclass

import numpy as np
import torch
from support.sampling_rows import sampling_rows
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from pagewire.wire.columns import Int32Array, SamplingRows
from pagewire.wire.plan import NO_TOKEN
from pagewire.worker.sampling.uniform import uniform

NUM_ROWS = 1000
VOCAB_SIZE = 400


@dataclass(frozen=True)
class MinPRows:
    """Rows of logits, how each is drawn, and transformers' processed logits (float32, minus infinity for what
    is dropped)."""

    logits_SV: torch.Tensor
    asked: SamplingRows
    positions: Int32Array
    processed_SV: torch.Tensor

    def part(self, rows: slice) -> "MinPRows":
        """Some of the rows."""
        return MinPRows(self.logits_SV[rows], self.asked[rows], self.positions[rows], self.processed_SV[rows])

    def check(self, tokens: Int32Array) -> None:
        """Every token is what inverting the processed distribution gives, but for draws that fall within a rounding
        error of an edge between two ids; and one that transformers drops is never drawn."""
        assert (tokens != NO_TOKEN).all()
        kept_SV = self.processed_SV.isfinite().numpy()
        assert kept_SV[np.arange(len(tokens)), tokens].all(), "a token that min-p drops was drawn"
        running_SV = self.processed_SV.double().softmax(1).cumsum(1).numpy()
        draws_S = uniform(self.asked["seed"], self.positions).astype(np.float64)
        expected = (running_SV > draws_S[:, None]).argmax(1)
        near_S = np.abs(running_SV - draws_S[:, None]).min(1) < 1e-5
        assert (tokens == expected)[~near_S].all()
        assert near_S.sum() < len(tokens) / 20


def min_p_rows(seed: int) -> MinPRows:
    """Rows with a spread from flat to peaked; ids near the border of a filter, which rounding may move, are none."""
    generator = np.random.default_rng(seed)
    spread_S1 = generator.uniform(0.3, 4, (NUM_ROWS, 1))
    logits_SV = torch.from_numpy((generator.standard_normal((NUM_ROWS, VOCAB_SIZE)) * spread_S1).astype(np.float32))
    asked = sampling_rows(
        NUM_ROWS,
        temperature=generator.choice([0.5, 0.8, 1.0, 1.5], NUM_ROWS),
        top_k=generator.choice([0, 0, 20, 200], NUM_ROWS),
        top_p=generator.choice([1.0, 1.0, 0.7, 0.95], NUM_ROWS),
        min_p=generator.choice([0.0, 0.002, 0.02, 0.1, 0.5, 0.9, 1.0], NUM_ROWS),
        seed=generator.integers(0, 2**64, NUM_ROWS, dtype=np.uint64),
    )
    positions = generator.integers(0, 4000, NUM_ROWS).astype(np.int32)
    processed = [_process(row_V[None], one) for row_V, one in zip(logits_SV, asked, strict=True)]
    return MinPRows(logits_SV, asked, positions, torch.cat(processed))


def _process(logits_1V: torch.Tensor, asked: np.void) -> torch.Tensor:
    """In the order in which transformers applies its processors."""
    ids = torch.zeros(1, 1, dtype=torch.int64)
    logits_1V = TemperatureLogitsWarper(float(asked["temperature"]))(ids, logits_1V)
    if asked["top_k"]:
        logits_1V = TopKLogitsWarper(int(asked["top_k"]))(ids, logits_1V)
    if asked["top_p"] < 1:
        logits_1V = TopPLogitsWarper(float(asked["top_p"]))(ids, logits_1V)
    if asked["min_p"]:
        logits_1V = MinPLogitsWarper(float(asked["min_p"]))(ids, logits_1V)
    return logits_1V
