"""Results of a device that can neither change nor report logits: rows that ask for it fail, with a reason.

Frontends refuse such requests before they get here; this holds whatever they do, and nothing is ignored.
"""

import numpy as np

from pagewire.wire.columns import Int32Array, pack
from pagewire.wire.plan import NO_TOKEN, ChunkLogprobs, RowFailure
from pagewire.worker.immediate import Sampled
from pagewire.worker.slots.state import ScoredRows, Slots, Step


def without_logits(slots: Slots, step: Step, tokens: Int32Array, reason: str) -> Sampled:
    """What the step gave, where rows ask for more than a token or for another; `tokens` is written to."""
    tokens[step.special_rows] = NO_TOKEN
    failures = [RowFailure(row, reason, by_request=True) for row in step.special_rows]
    return Sampled(tokens, failures, prompt_logprobs=[_no_scores(slots, scored) for scored in step.scored])


def _no_scores(slots: Slots, scored: ScoredRows) -> ChunkLogprobs:
    admit = slots.special.get(scored.slot)
    count = len(scored.tokens) * (0 if admit is None else admit.prompt_logprobs or 0)
    return ChunkLogprobs(
        scored.chunk,
        scored.position,
        np.full(len(scored.tokens), np.nan, "<f4").tobytes(),
        pack(np.full(count, NO_TOKEN)),
        np.full(count, np.nan, "<f4").tobytes(),
    )
