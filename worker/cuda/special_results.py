"""What comes back of a step's special rows: on its way while the step is in flight, and in the wire's words when it is
over."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from pagewire.wire.columns import Int32Array, pack, unpack
from pagewire.wire.logits import LogprobsRequest
from pagewire.wire.plan import NO_TOKEN, NOTHING_LEFT, ChunkLogprobs, RowFailure, RowLogprobs
from pagewire.worker.immediate import Sampled
from pagewire.worker.slots.state import ScoredRows


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of some rows, in host memory once the step is over. S, M named ids, N likeliest."""

    chosen_S: torch.Tensor
    named_SM: torch.Tensor
    top_ids_SN: torch.Tensor
    top_SN: torch.Tensor


@dataclass(frozen=True, slots=True)
class SpecialInFlight:
    """What comes back of a step's special rows; read when the step is over."""

    broken: dict[int, str] = field(default_factory=dict)
    """Rows that could not be worked on, and why."""
    constrained: dict[int, str] = field(default_factory=dict)
    """Rows whose grammar cannot go on, and why."""
    changed: list[int] = field(default_factory=list)
    first_tokens: list[torch.Tensor] = field(default_factory=list)
    """Of the changed rows, what the model's own logits gave."""
    reports: list[tuple[list[int], list[LogprobsRequest], Logprobs]] = field(default_factory=list)
    """Rows, what each asks for, and what there is to say."""
    scores: list[tuple[list[ScoredRows], list[int], Logprobs]] = field(default_factory=list)
    """Chunks that score, how many of the likeliest each asks for, and all their rows."""

    def sampled(self, tokens: Int32Array) -> Sampled:
        """What the step gave; `tokens` is a copy that may be written to."""
        failures = {
            row: RowFailure(row, NOTHING_LEFT, by_request=True)
            for row, first in zip(self.changed, _joined(self.first_tokens), strict=True)
            if tokens[row] == NO_TOKEN and first != NO_TOKEN
        }
        for by_request, reasons in ((False, self.broken), (True, self.constrained)):
            for row, reason in reasons.items():
                tokens[row], failures[row] = NO_TOKEN, RowFailure(row, reason, by_request)
        logprobs = [
            _row_logprobs(row, asked, index, report)
            for rows, all_asked, report in self.reports
            for index, (row, asked) in enumerate(zip(rows, all_asked, strict=True))
            if tokens[row] != NO_TOKEN
        ]
        return Sampled(
            tokens,
            [failures[row] for row in sorted(failures)],
            sorted(logprobs, key=lambda each: each.row),
            [each for scores in self.scores for each in _chunk_logprobs(*scores)],
        )


def _joined(tensors: list[torch.Tensor]) -> list[int]:
    return [token for tensor in tensors for token in tensor.tolist()]


def _row_logprobs(row: int, asked: LogprobsRequest, index: int, report: Logprobs) -> RowLogprobs:
    count, named = asked.num_candidates, unpack(asked.named_ids)
    ids = np.concatenate([report.top_ids_SN[index, :count].numpy(), named])
    values = torch.cat([report.top_SN[index, :count], report.named_SM[index, : len(named)]])
    return RowLogprobs(row, float(report.chosen_S[index]), pack(ids), values.numpy().tobytes())


def _chunk_logprobs(chunks: Sequence[ScoredRows], counts: list[int], report: Logprobs) -> list[ChunkLogprobs]:
    found, first = [], 0
    for scored, count in zip(chunks, counts, strict=True):
        rows = slice(first, first + len(scored.tokens))
        first += len(scored.tokens)
        ids, values = report.top_ids_SN[rows, :count].numpy(), report.top_SN[rows, :count].numpy()
        chosen = report.chosen_S[rows].numpy()
        found.append(
            ChunkLogprobs(scored.chunk, scored.position, chosen.tobytes(), pack(ids.ravel()), values.tobytes())
        )
    return found
