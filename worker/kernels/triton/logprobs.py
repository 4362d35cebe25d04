"""Log-probabilities of a token, of named ids and of the N likeliest, in two launches.

Signature and result as in `pagewire.worker.kernels.reference.logprobs`, the definition.

    _chunk_tops   (row, chunk)  the chunk's largest logit, its sum of exp(logit - largest), and its N likeliest ids
    _row_tops     (row)         the row's sum; the N likeliest among the chunks' N; the token's and named ids' logits

The N likeliest are taken one by one as the highest rank left (`pagewire.worker.kernels.triton.logits.rank_of`): N is at
most 20, so that is cheaper than a sort. Floor in bytes per row of V logits of 2 bytes: 2 V.
"""

import torch
import triton
import triton.language as tl

from pagewire.wire.plan import NO_TOKEN
from pagewire.worker.kernels.triton.logits import (
    LEAST_RANK,
    chunk_largest,
    id_of,
    is_distribution,
    load_chunk,
    load_chunk_maxima,
    rank_of,
)
from pagewire.worker.kernels.triton.search import SEARCH_WARPS
from pagewire.worker.kernels.workspaces import MAX_TOP_LOGPROBS, LogprobsWorkspace


def logprobs(
    logits_LV: torch.Tensor,
    rows_S: torch.Tensor,
    tokens_S: torch.Tensor,
    named_SM: torch.Tensor,
    out_chosen_S: torch.Tensor,
    out_named_SM: torch.Tensor,
    out_top_ids_SN: torch.Tensor,
    out_top_SN: torch.Tensor,
    *,
    workspace: LogprobsWorkspace,
) -> None:
    """See `pagewire.worker.kernels.reference.logprobs.logprobs`; all but the logits is contiguous."""
    num_rows, vocab_size = rows_S.shape[0], logits_LV.shape[1]
    num_top, num_named = out_top_ids_SN.shape[1], named_SM.shape[1]
    workspace.check(
        logits_LV,
        rows_S,
        tokens=tokens_S,
        named=named_SM,
        out_chosen=out_chosen_S,
        out_named=out_named_SM,
        out_top_ids=out_top_ids_SN,
        out_top=out_top_SN,
    )
    if num_top > MAX_TOP_LOGPROBS:
        raise ValueError(f"{num_top} likeliest ids; at most {MAX_TOP_LOGPROBS}")
    if num_rows == 0:
        return
    w = workspace
    num_chunks = w.chunk_max_SC.shape[1]
    chunk = min(w.chunk, triton.next_power_of_2(vocab_size))
    _chunk_tops[(num_rows, num_chunks)](
        logits_LV, logits_LV.stride(0), rows_S, w.chunk_max_SC, w.chunk_sum_SC, w.chunk_top_SCN,
        VOCAB=vocab_size, NUM_CHUNKS=num_chunks, CHUNK=chunk, NUM_TOP=num_top,
    )  # fmt: skip
    _row_tops[(num_rows,)](
        logits_LV, logits_LV.stride(0), rows_S, tokens_S, named_SM, w.chunk_max_SC, w.chunk_sum_SC, w.chunk_top_SCN,
        out_chosen_S, out_named_SM, out_top_ids_SN, out_top_SN,
        NUM_CHUNKS=num_chunks, CHUNKS_BLOCK=triton.next_power_of_2(num_chunks), NUM_TOP=num_top,
        TOPS_BLOCK=triton.next_power_of_2(num_chunks * max(num_top, 1)), NUM_NAMED=num_named,
        NAMED_BLOCK=triton.next_power_of_2(max(num_named, 1)), NO_TOKEN=NO_TOKEN, num_warps=SEARCH_WARPS,
    )  # fmt: skip


@triton.jit
def _chunk_tops(
    logits_ptr,
    row_stride,
    rows_ptr,
    chunk_max_ptr,
    chunk_sum_ptr,
    chunk_tops_ptr,
    VOCAB: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    NUM_TOP: tl.constexpr,
):
    index, chunk = tl.program_id(0), tl.program_id(1)
    ids, logits = load_chunk(logits_ptr, row_stride, tl.load(rows_ptr + index), chunk, VOCAB, CHUNK)
    largest = chunk_largest(logits)
    place = index * NUM_CHUNKS + chunk
    tl.store(chunk_max_ptr + place, largest)
    base = tl.where(is_distribution(largest), largest, 0.0)
    tl.store(chunk_sum_ptr + place, tl.sum(tl.exp(logits - base), 0))
    ranks = tl.where(logits > -float("inf"), rank_of(logits, ids), LEAST_RANK)
    for top in range(NUM_TOP):
        best = tl.max(ranks, 0)
        tl.store(chunk_tops_ptr + place.to(tl.int64) * NUM_TOP + top, best)
        ranks = tl.where(ranks == best, LEAST_RANK, ranks)


@triton.jit
def _row_tops(
    logits_ptr,
    row_stride,
    rows_ptr,
    tokens_ptr,
    named_ptr,
    chunk_max_ptr,
    chunk_sum_ptr,
    chunk_tops_ptr,
    chosen_ptr,
    named_logprobs_ptr,
    top_ids_ptr,
    top_logprobs_ptr,
    NUM_CHUNKS: tl.constexpr,
    CHUNKS_BLOCK: tl.constexpr,
    NUM_TOP: tl.constexpr,
    TOPS_BLOCK: tl.constexpr,
    NUM_NAMED: tl.constexpr,
    NAMED_BLOCK: tl.constexpr,
    NO_TOKEN: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64)
    maxima = load_chunk_maxima(chunk_max_ptr, index, NUM_CHUNKS, CHUNKS_BLOCK)
    largest = tl.max(maxima, 0)
    is_sound = is_distribution(largest)
    chunks = tl.arange(0, CHUNKS_BLOCK)
    sums = tl.load(chunk_sum_ptr + index * NUM_CHUNKS + chunks, mask=chunks < NUM_CHUNKS, other=0)
    # A chunk of nothing but minus infinity has the sum 0.
    total = tl.sum(sums * tl.exp(tl.where(is_sound, maxima - largest, 0.0)), 0)
    nan = float("nan")
    whole = tl.where(is_sound, largest + tl.log(total), nan)

    row_ptr = logits_ptr + tl.load(rows_ptr + index).to(tl.int64) * row_stride
    token = tl.load(tokens_ptr + index)
    logit = tl.load(row_ptr + tl.maximum(token, 0)).to(tl.float32)
    tl.store(chosen_ptr + index, tl.where(token < 0, nan, logit - whole))

    place = tl.arange(0, NAMED_BLOCK)
    exists = place < NUM_NAMED
    named = tl.load(named_ptr + index * NUM_NAMED + place, mask=exists, other=0)
    logits = tl.load(row_ptr + tl.maximum(named, 0), mask=exists, other=0).to(tl.float32)
    tl.store(named_logprobs_ptr + index * NUM_NAMED + place, tl.where(named < 0, nan, logits - whole), mask=exists)

    places = tl.arange(0, TOPS_BLOCK)
    tops_ptr = chunk_tops_ptr + index * (NUM_CHUNKS * NUM_TOP) + places
    ranks = tl.load(tops_ptr, mask=places < NUM_CHUNKS * NUM_TOP, other=LEAST_RANK)
    for top in range(NUM_TOP):
        best = tl.max(ranks, 0)
        has_id = best > LEAST_RANK
        top_id = tl.where(has_id, id_of(best), 0)
        logit = tl.where(has_id, tl.load(row_ptr + top_id).to(tl.float32), -float("inf"))
        tl.store(top_ids_ptr + index * NUM_TOP + top, tl.where(has_id & is_sound, top_id, NO_TOKEN))
        tl.store(top_logprobs_ptr + index * NUM_TOP + top, logit - whole)
        ranks = tl.where(ranks == best, LEAST_RANK, ranks)
