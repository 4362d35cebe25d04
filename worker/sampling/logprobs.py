"""Log-probabilities on a CPU, of one row of logits: a token's, the likeliest ids', and those of named ids.

Of the whole vocabulary's softmax, before temperature and filters. A row is worked on by itself, so its numbers depend
on no other row; sums are formed in float64. In numpy, on the calling thread: torch would wake threads of its own beside
those of the native library, which costs more than the work. No sort: whatever is among the N likeliest is at least the
N-th largest of the blocks' maxima.
"""

from dataclasses import dataclass

import numpy as np

from pagewire.wire.columns import Float32Array, Int32Array
from pagewire.wire.plan import NO_TOKEN

_BLOCK = 128


@dataclass(frozen=True, slots=True)
class LogprobsRow:
    """A row of logits that is a distribution, and what its softmax is divided by."""

    logits_V: Float32Array
    log_total: float
    """Natural log of the sum of exponentials."""

    @classmethod
    def of(cls, logits_V: Float32Array) -> "LogprobsRow":
        """At least one of them finite and none NaN or infinite; minus infinity may be."""
        largest = logits_V.max()
        total = float(np.exp(logits_V - largest).sum(dtype=np.float64))
        return cls(logits_V, float(largest) + float(np.log(total)))

    def of_ids(self, ids: Int32Array) -> Float32Array:
        """Of each id; minus infinity where it has no probability."""
        return (self.logits_V[ids].astype(np.float64) - self.log_total).astype(np.float32)

    def likeliest(self, count: int) -> tuple[Int32Array, Float32Array]:
        """`count` ids, the likeliest first, the lower first among equals, and theirs; NO_TOKEN and minus infinity past
        the last that has a probability."""
        ids, logprobs = np.full(count, NO_TOKEN, np.int32), np.full(count, -np.inf, np.float32)
        if count:
            found = np.flatnonzero(self.logits_V >= self._bound(count))
            logits = self.logits_V[found]
            order = np.argsort(-logits, kind="stable")[:count]
            found = found[order][np.isfinite(logits[order])]
            ids[: len(found)] = found
            logprobs[: len(found)] = self.of_ids(ids[: len(found)])
        return ids, logprobs

    def _bound(self, count: int) -> float:
        """At least `count` logits, if there are so many, are no smaller."""
        num_blocks = len(self.logits_V) // _BLOCK
        if num_blocks < count:
            return -np.inf
        maxima = self.logits_V[: num_blocks * _BLOCK].reshape(num_blocks, _BLOCK).max(axis=1)
        return float(np.partition(maxima, num_blocks - count)[num_blocks - count])
