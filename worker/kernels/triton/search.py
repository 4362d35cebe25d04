"""The search for top-k, top-p, min-p and the draw of one row, by bisection, in one program.

Ranks (`pagewire.worker.kernels.triton.logits.rank_of`) are unique, so "the k largest, the lower id first among equals"
is simply "every rank from some threshold on", and so is what top-p keeps. The thresholds and the drawn id are found by
counting and summing what lies above a pivot: numbers that no order of the ids can change, so the ids may be written
down in any.

A pivot costs one pass over the ids, which are held in registers unless there are more than were written down: about as
many passes as separate the k-th from its neighbour, five to ten for a few dozen ids, and at most 52 where logits are
equal to the last bit.
"""

import triton
import triton.language as tl

from pagewire.worker.kernels.triton.logits import LEAST_RANK, MOST_RANK, is_distribution, load_chunk_maxima, rank_of
from pagewire.worker.kernels.triton.weights import (
    is_filtered,
    least_weight,
    min_p_of,
    scaled_draw,
    seed_of,
    temperature_of,
    top_k_of,
    top_p_of,
    top_p_target,
    uniform_bits,
    weight_of,
    weight_rate,
)

SEARCH_WARPS = 8
FEW_TILE = 512
MANY_TILE = 4096
"""Ids that the search holds or reads at a time, in one program of SEARCH_WARPS: the few dozen of an ordinary top-k are
two per thread, whose sums cost little more than the exchange between the warps. 4,096 are 16 per thread: as many as the
registers hold, and enough loads under way where a whole row is read again for every pivot."""


@triton.jit
def search(
    logits_ptr,
    row_stride,
    sampling_ptr,
    position_ptr,
    chunk_max_ptr,
    chunk_mass_ptr,
    num_candidates_ptr,
    candidates_ptr,
    tokens_ptr,
    VOCAB: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    CHUNKS_BLOCK: tl.constexpr,
    IS_SMALL: tl.constexpr,
    MAX_CANDIDATES: tl.constexpr,
    FEW_TILE: tl.constexpr,
    MANY_TILE: tl.constexpr,
):
    """One row; see `pagewire.worker.kernels.triton.sampling`. Writes its token, if it is one of top-k or top-p."""
    row = tl.program_id(0)
    temperature = temperature_of(sampling_ptr, row)
    if (temperature > 0) & is_filtered(sampling_ptr, row, VOCAB):
        largest = tl.max(load_chunk_maxima(chunk_max_ptr, row, NUM_CHUNKS, CHUNKS_BLOCK), 0)
        if is_distribution(largest):
            chunks = tl.arange(0, CHUNKS_BLOCK)
            mass = tl.load(chunk_mass_ptr + row * NUM_CHUNKS + chunks, mask=chunks < NUM_CHUNKS, other=0)
            total = tl.sum(mass, 0)
            draw = uniform_bits(seed_of(sampling_ptr, row), tl.load(position_ptr + row))
            top_k, top_p = top_k_of(sampling_ptr, row), top_p_of(sampling_ptr, row)
            least = least_weight(min_p_of(sampling_ptr, row))
            rate = weight_rate(temperature)
            row_ptr = logits_ptr + row.to(tl.int64) * row_stride
            listed_ptr = candidates_ptr + row.to(tl.int64) * MAX_CANDIDATES
            num_listed = tl.load(num_candidates_ptr + row)
            if IS_SMALL | (num_listed > MAX_CANDIDATES):
                token = _draw(
                    row_ptr, listed_ptr, VOCAB, total, largest, rate, top_k, top_p, least, draw,
                    VOCAB, MANY_TILE, IS_HELD=VOCAB <= MANY_TILE, IS_LISTED=False,
                )  # fmt: skip
                tl.store(tokens_ptr + row, token)
            elif num_listed <= FEW_TILE:
                token = _draw(
                    row_ptr, listed_ptr, num_listed, total, largest, rate, top_k, top_p, least, draw,
                    VOCAB, FEW_TILE, IS_HELD=True, IS_LISTED=True,
                )  # fmt: skip
                tl.store(tokens_ptr + row, token)
            else:
                token = _draw(
                    row_ptr, listed_ptr, num_listed, total, largest, rate, top_k, top_p, least, draw,
                    VOCAB, MAX_CANDIDATES, IS_HELD=True, IS_LISTED=True,
                )  # fmt: skip
                tl.store(tokens_ptr + row, token)


@triton.jit
def _draw(
    row_ptr,
    listed_ptr,
    num_ids,
    total,
    largest,
    rate,
    top_k,
    top_p,
    least,
    draw,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
    IS_HELD: tl.constexpr,
    IS_LISTED: tl.constexpr,
):
    """The drawn id. Looked at are the num_ids ids at listed_ptr, which include all that top-k or, without it, top-p
    keeps, or without both min-p; or the whole row. They fit one TILE, which is then held, or are loaded for every
    pivot. total is the weight of the whole row."""
    ids, ranks, weights = _load(row_ptr, listed_ptr, 0, num_ids, largest, rate, TILE, IS_LISTED)
    lowest = tl.min(tl.where(ranks == LEAST_RANK, MOST_RANK, ranks), 0)
    highest = tl.max(ranks, 0)
    if not IS_HELD:
        for start in range(TILE, VOCAB, TILE):
            _, others, _ = _load(row_ptr, listed_ptr, start, num_ids, largest, rate, TILE, IS_LISTED)
            lowest = tl.minimum(lowest, tl.min(tl.where(others == LEAST_RANK, MOST_RANK, others), 0))
            highest = tl.maximum(highest, tl.max(others, 0))
    # From `low` on there are enough ids, from `high` on there are not.
    low = lowest
    num_low = tl.zeros((), tl.int32) + num_ids
    if (top_k > 0) & (top_k < VOCAB):
        high = highest + 1
        while (high - low > 1) & (num_low != top_k):
            middle = low + ((high - low) >> 1)
            count, _ = _measure(ids, ranks, weights, row_ptr, middle, VOCAB, 0, largest, rate, VOCAB, TILE, IS_HELD)
            is_enough = count >= top_k
            num_low = tl.where(is_enough, count, num_low)
            low = tl.where(is_enough, middle, low)
            high = tl.where(is_enough, high, middle)
        num_low, total = _measure(ids, ranks, weights, row_ptr, low, VOCAB, 0, largest, rate, VOCAB, TILE, IS_HELD)
    if top_p < 1:
        target = top_p_target(total, top_p)
        high = highest + 1
        num_high = tl.zeros((), tl.int32)
        while (high - low > 1) & (num_low - num_high > 1):
            middle = low + ((high - low) >> 1)
            count, weight = _measure(
                ids, ranks, weights, row_ptr, middle, VOCAB, 0, largest, rate, VOCAB, TILE, IS_HELD
            )
            is_enough = weight >= target
            num_low = tl.where(is_enough, count, num_low)
            num_high = tl.where(is_enough, num_high, count)
            low = tl.where(is_enough, middle, low)
            high = tl.where(is_enough, high, middle)
        num_low, total = _measure(ids, ranks, weights, row_ptr, low, VOCAB, 0, largest, rate, VOCAB, TILE, IS_HELD)
    if least > 0:
        _, total = _measure(ids, ranks, weights, row_ptr, low, VOCAB, least, largest, rate, VOCAB, TILE, IS_HELD)
    passed = scaled_draw(total, draw)
    # The running sum has not passed the draw at `before`, and has at `token`.
    before = tl.zeros((), tl.int32) - 1
    token = tl.zeros((), tl.int32) + (VOCAB - 1)
    while token - before > 1:
        middle_id = (before + token) >> 1
        _, weight = _measure(ids, ranks, weights, row_ptr, low, middle_id, least, largest, rate, VOCAB, TILE, IS_HELD)
        token = tl.where(weight > passed, middle_id, token)
        before = tl.where(weight > passed, before, middle_id)
    return token


@triton.jit
def _load(row_ptr, listed_ptr, start, num_ids, largest, rate, TILE: tl.constexpr, IS_LISTED: tl.constexpr):
    """(ids, ranks, weights) of a tile; past the end a rank is LEAST_RANK and a weight 0."""
    index = start + tl.arange(0, TILE)
    mask = index < num_ids
    ids = index
    if IS_LISTED:
        ids = tl.load(listed_ptr + index, mask=mask, other=0)
    logits = tl.load(row_ptr + ids, mask=mask, other=-float("inf")).to(tl.float32)
    return ids, tl.where(mask, rank_of(logits, ids), LEAST_RANK), weight_of(logits, largest, rate)


@triton.jit
def _measure(
    ids,
    ranks,
    weights,
    row_ptr,
    least_rank,
    last_id,
    least_weight,
    largest,
    rate,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
    IS_HELD: tl.constexpr,
):
    """(number, weight) of the ids up to last_id whose rank and weight are at least these: of the tile that is held, or
    of the whole row, whose first tile that is."""
    count, weight = _sum_up(ids, ranks, weights, least_rank, last_id, least_weight)
    if not IS_HELD:
        for start in range(TILE, VOCAB, TILE):
            more_ids, more_ranks, more_weights = _load(row_ptr, row_ptr, start, VOCAB, largest, rate, TILE, False)
            more_count, more_weight = _sum_up(more_ids, more_ranks, more_weights, least_rank, last_id, least_weight)
            count += more_count
            weight += more_weight
    return count, weight


@triton.jit
def _sum_up(ids, ranks, weights, least_rank, last_id, least_weight):
    is_counted = (ranks >= least_rank) & (ids <= last_id) & (weights >= least_weight)
    return tl.sum(is_counted.to(tl.int32), 0), tl.sum(tl.where(is_counted, weights, 0), 0)
