"""Log-probabilities on a CPU, of one row of logits: a token's, the likeliest ids', and those of named ids.

Of the whole vocabulary's softmax, before temperature and filters. A row is worked on by itself, so its numbers depend
on no other row; sums are formed in float64. No sort: the N-th largest logit is a threshold.
"""

from dataclasses import dataclass

import numpy as np
import torch

from pagewire.wire.columns import Int32Array
from pagewire.wire.plan import NO_TOKEN
from pagewire.worker.sampling.uniform import Float32Array


@dataclass(frozen=True, slots=True)
class LogprobsRow:
    """A row of logits that is a distribution, and what its softmax is divided by."""

    logits_V: Float32Array
    log_total: float
    """Natural log of the sum of exponentials."""

    @classmethod
    def of(cls, logits_V: torch.Tensor) -> "LogprobsRow":
        """float32 [V] on the CPU, at least one of them finite and none NaN or infinite; minus infinity may be."""
        largest = float(logits_V.max())
        total = float((logits_V - largest).exp_().sum(dtype=torch.float64))
        return cls(logits_V.numpy(), largest + float(np.log(total)))

    def of_ids(self, ids: Int32Array) -> Float32Array:
        """Of each id; minus infinity where it has no probability."""
        return (self.logits_V[ids].astype(np.float64) - self.log_total).astype(np.float32)

    def likeliest(self, count: int) -> tuple[Int32Array, Float32Array]:
        """`count` ids, the likeliest first, the lower first among equals, and theirs; NO_TOKEN and minus infinity past
        the last that has a probability."""
        ids, logprobs = np.full(count, NO_TOKEN, np.int32), np.full(count, -np.inf, np.float32)
        num_kept = min(count, len(self.logits_V))
        if num_kept:
            least = float(torch.from_numpy(self.logits_V).topk(num_kept, sorted=True).values[-1])
            found = np.flatnonzero(self.logits_V >= least)
            order = np.argsort(-self.logits_V[found], kind="stable")[:num_kept]
            found = found[order][np.isfinite(self.logits_V[found[order]])]
            ids[: len(found)] = found
            logprobs[: len(found)] = self.of_ids(ids[: len(found)])
        return ids, logprobs
