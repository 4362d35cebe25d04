"""The sampler on a CPU: one token per row of logits, a pure function of (logits, temperature, top-k, top-p, seed,
position).

    temperature 0   the largest logit; the lowest id among equals
    else            w = exp((logit - largest) / temperature)
                    top-k keeps the k largest w, top-p then the fewest largest whose sum is ≥ p of what top-k kept;
                    among equals the lower id counts as larger; min-p drops of these what weighs less than that, the
                    largest w being 1
                    the token is the first kept id, in ascending order of ids, at which the running sum of w passes
                    uniform(seed, position) × (sum of kept w)

Rows are drawn one at a time: a row of 150,000 logits stays in the core's cache between passes, and no row can have an
influence on another. One pass over the whole batch finds every row's maxima by blocks of 128 ids; they give the
greedy token, the largest logit, and the few blocks that top-k need look at. Wide passes run in torch on all threads,
what is narrow in numpy, whose calls cost less.

A row that is no distribution (a NaN, an infinity, or nothing but minus infinity among its logits) yields NO_TOKEN,
for this row alone: one sequence that overflows must not end the others, and a token made up for it would hide the
fault. Minus infinity beside finite logits is an ordinary probability of zero. So does a row whose parameters are out of
their ranges: plans are checked long before, and what looks for a threshold that does not exist might never end.

Times stand in this folder's README.
"""

import numpy as np
import numpy.typing as npt
import torch

from pagewire.wire.columns import ROW, Int32Array, SamplingRows
from pagewire.wire.plan import NO_TOKEN
from pagewire.worker.sampling.uniform import Float32Array, uniform
from pagewire.worker.slots.columns import BoolArray

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_BLOCK = 128
_MIN_SHRINK = 0.75
"""A round of narrowing for top-p that keeps more than this share is the last: sorting the rest costs less."""


def check_rows(logits_SV: torch.Tensor, rows: SamplingRows, positions: Int32Array, vocab_size: int) -> None:
    """Raises ValueError unless there is one row of parameters and one position (int32; the index that the sampled token
    takes in its sequence) for each row of logits, which are of this vocabulary: kernels read at addresses, and would go
    on past a column's end."""
    num_rows, num_ids = logits_SV.shape
    if num_ids != vocab_size:
        raise ValueError(f"logits have {num_ids} ids; the sampler is for {vocab_size}")
    for name, column, dtype in (("rows", rows, ROW), ("positions", positions, np.dtype(np.int32))):
        if column.shape != (num_rows,) or column.dtype != dtype:
            raise ValueError(
                f"{name} are {column.dtype} {column.shape} for {num_rows} rows of logits; they must be {dtype} "
                f"({num_rows},)"
            )


def are_in_range(rows: SamplingRows) -> BoolArray:
    """Which rows have parameters that they can be drawn with. A new array."""
    top_p = rows["top_p"]
    top_k, min_p = rows["top_k"], rows["min_p"]
    return (rows["temperature"] >= 0) & (top_k >= 0) & (top_p >= 0) & (top_p <= 1) & (min_p >= 0) & (min_p <= 1)


class Sampler:
    """Holds scratch memory for one row; no other state."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        padded = -(-vocab_size // _BLOCK) * _BLOCK
        # The padding stays zero: weights of ids that do not exist.
        self._weights = torch.zeros(padded)
        self._weights_np: Float32Array = self._weights.numpy()

    @torch.inference_mode()
    def sample(self, logits_SV: torch.Tensor, rows: SamplingRows, positions: Int32Array) -> Int32Array:
        """One token id, or NO_TOKEN, per row; see `check_rows`, whose error it raises. `logits_SV` is on the CPU, rows
        contiguous; it is only read."""
        check_rows(logits_SV, rows, positions, self._vocab_size)
        logits_SV = logits_SV.float()
        block_max = self._block_max(logits_SV)
        best_block = block_max.argmax(axis=1)
        largest = block_max[np.arange(len(block_max)), best_block]
        is_drawable = np.isfinite(largest) & are_in_range(rows)
        draws = uniform(rows["seed"], positions)
        tokens = np.full(len(block_max), NO_TOKEN, np.int32)
        for row in np.flatnonzero(is_drawable).tolist():
            logits = logits_SV[row]
            if rows["temperature"][row] == 0:
                tokens[row] = _first_largest(logits.numpy(), int(best_block[row]))
            else:
                tokens[row] = self._draw(logits, block_max[row], rows[row], float(draws[row]))
        return tokens

    def _block_max(self, logits_SV: torch.Tensor) -> Float32Array:
        """The largest logit of every block of 128 ids: [S, blocks]; NaN where the block has one."""
        num_full = self._vocab_size // _BLOCK
        num_rows = logits_SV.shape[0]
        maxima = torch.empty(num_rows, -(-self._vocab_size // _BLOCK))
        if num_full:
            whole = logits_SV[:, : num_full * _BLOCK].view(num_rows, num_full, _BLOCK)
            torch.amax(whole, dim=2, out=maxima[:, :num_full])
        if self._vocab_size % _BLOCK:
            torch.amax(logits_SV[:, num_full * _BLOCK :], dim=1, out=maxima[:, num_full])
        result: Float32Array = maxima.numpy()
        return result

    def _draw(self, logits: torch.Tensor, block_max: Float32Array, asked: np.void, draw: float) -> int:
        temperature, top_k = float(asked["temperature"]), int(asked["top_k"])
        top_p, min_p = float(asked["top_p"]), float(asked["min_p"])
        largest = float(block_max.max())
        if 0 < top_k < self._vocab_size:
            values = logits.numpy()
            ids = _top_k_ids(values, block_max, top_k)
            weights = np.exp((values[ids].astype(np.float64) - largest) / temperature)
            if top_p < 1:
                ids, weights = _top_p(ids, weights, top_p * float(weights.sum()))
            return _invert(ids, weights, min_p, draw)

        block_sums = self._weigh(logits, largest, temperature)
        if top_p < 1:
            target = top_p * float(block_sums.sum())
            ids = self._heavy_ids(float(block_sums.sum()), target)
            ids, weights = _top_p(ids, self._weights_np[ids].astype(np.float64), target)
            return _invert(ids, weights, min_p, draw)
        if min_p > 0:
            ids = np.flatnonzero(self._weights_np[: self._vocab_size] >= min_p)
            return _invert(ids, self._weights_np[ids].astype(np.float64), min_p, draw)
        return self._invert_row(block_sums, draw)

    def _weigh(self, logits: torch.Tensor, largest: float, temperature: float) -> Float64Array:
        """Fill the scratch row with weights; returns their sums by blocks.

        Subtracting before dividing is exact for the largest logit, so a tiny temperature gives 0 and minus infinity
        rather than NaN.
        """
        weights = self._weights[: self._vocab_size]
        torch.sub(logits, largest, out=weights)
        if temperature != 1:
            weights.div_(temperature)
        weights.exp_()
        sums: Float32Array = self._weights.view(-1, _BLOCK).sum(1).numpy()
        return sums.astype(np.float64)

    def _invert_row(self, block_sums: Float64Array, draw: float) -> int:
        """Invert the running sum of the scratch row: first among blocks, then inside one."""
        running = block_sums.cumsum()
        target = draw * running[-1]
        block = min(int(running.searchsorted(target, side="right")), _last_positive(block_sums))
        before = running[block - 1] if block else 0.0
        inside = self._weights_np[block * _BLOCK : (block + 1) * _BLOCK].astype(np.float64)
        index = int(inside.cumsum().searchsorted(target - before, side="right"))
        # A block's float32 sum may be a little more than its float64 running sum.
        return block * _BLOCK + min(index, _last_positive(inside))

    def _heavy_ids(self, total: float, target: float) -> Int64Array:
        """A superset of the ids that top-p keeps, ascending, without sorting the row.

        Whatever n ids weigh less than (total - target) / n each weigh less than total - target together, so those that
        remain hold the target. Each round applies this to what the last one left.
        """
        ids = np.flatnonzero(self._weights_np[: self._vocab_size] >= (total - target) / self._vocab_size)
        while True:
            weights = self._weights_np[ids].astype(np.float64)
            spare = float(weights.sum()) - target
            heavy = ids[weights >= spare / len(ids)] if spare > 0 else ids
            if len(heavy) > _MIN_SHRINK * len(ids):
                return heavy
            ids = heavy


def _first_largest(logits: Float32Array, block: int) -> int:
    return block * _BLOCK + int(logits[block * _BLOCK : (block + 1) * _BLOCK].argmax())


def _top_k_ids(logits: Float32Array, block_max: Float32Array, k: int) -> Int64Array:
    """Ids of the k largest logits, ascending; among equals the lower ids.

    The k-th largest block maximum is a lower bound of the k-th largest logit, so only blocks that reach it matter.
    """
    if k < len(block_max):
        bound = np.partition(block_max, -k)[-k]
        blocks = np.flatnonzero(block_max >= bound)
        candidates = (blocks[:, None] * _BLOCK + np.arange(_BLOCK)).ravel()
        candidates = candidates[: candidates.searchsorted(len(logits))]
    else:
        candidates = np.arange(len(logits))
    values = logits[candidates]
    threshold = np.partition(values, -k)[-k]
    above = candidates[values > threshold]
    equal = candidates[values == threshold][: k - len(above)]
    return np.sort(np.concatenate([above, equal]))


def _top_p(ids: Int64Array, weights: Float64Array, target: float) -> tuple[Int64Array, Float64Array]:
    """The fewest largest weights that sum to `target`, at least one; ids ascending, among equals the lower ids."""
    order = np.argsort(-weights, kind="stable")
    running = weights[order].cumsum()
    num_kept = int(running.searchsorted(target, side="left")) + 1
    kept = np.sort(order[:num_kept])
    return ids[kept], weights[kept]


def _invert(ids: Int64Array, weights: Float64Array, min_p: float, draw: float) -> int:
    """The id drawn of those that weigh at least `min_p`, by their weights; ids ascending."""
    if min_p > 0:
        kept = weights >= min_p
        ids, weights = ids[kept], weights[kept]
    running = weights.cumsum()
    index = int(running.searchsorted(draw * running[-1], side="right"))
    return int(ids[min(index, _last_positive(weights))])


def _last_positive(weights: Float64Array) -> int:
    """Rounding must never carry a draw past the last id that has a probability."""
    return int(np.flatnonzero(weights)[-1])
