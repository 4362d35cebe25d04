"""Log-probabilities of the sampled token and of the N likeliest, in two launches.

Signature and result as in `pagewire.worker.kernels.reference.logprobs`, the definition.

    _chunk_tops   (row, chunk)  the chunk's largest logit, its sum of exp(logit - largest), and its N likeliest ids
    _row_tops     (row)         the row's sum; the N likeliest among the chunks' N; the sampled token's logit

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
    logits_SV: torch.Tensor,
    tokens_S: torch.Tensor,
    out_logprob_S: torch.Tensor,
    out_top_ids_SN: torch.Tensor,
    out_top_logprobs_SN: torch.Tensor,
    *,
    workspace: LogprobsWorkspace,
) -> None:
    """See `pagewire.worker.kernels.reference.logprobs.logprobs`; the results' tensors are contiguous."""
    num_rows, vocab_size = logits_SV.shape
    num_top = out_top_ids_SN.shape[1]
    workspace.check(
        logits_SV,
        tokens=tokens_S,
        out_logprob=out_logprob_S,
        out_top_ids=out_top_ids_SN,
        out_top_logprobs=out_top_logprobs_SN,
    )
    if num_top > MAX_TOP_LOGPROBS:
        raise ValueError(f"{num_top} likeliest ids; at most {MAX_TOP_LOGPROBS}")
    if num_rows == 0:
        return
    w = workspace
    num_chunks = w.chunk_max_SC.shape[1]
    chunk = min(w.chunk, triton.next_power_of_2(vocab_size))
    _chunk_tops[(num_rows, num_chunks)](
        logits_SV, logits_SV.stride(0), w.chunk_max_SC, w.chunk_sum_SC, w.chunk_top_SCN,
        VOCAB=vocab_size, NUM_CHUNKS=num_chunks, CHUNK=chunk, NUM_TOP=num_top,
    )  # fmt: skip
    _row_tops[(num_rows,)](
        logits_SV, logits_SV.stride(0), tokens_S, w.chunk_max_SC, w.chunk_sum_SC, w.chunk_top_SCN,
        out_logprob_S, out_top_ids_SN, out_top_logprobs_SN,
        NUM_CHUNKS=num_chunks, CHUNKS_BLOCK=triton.next_power_of_2(num_chunks), NUM_TOP=num_top,
        TOPS_BLOCK=triton.next_power_of_2(num_chunks * max(num_top, 1)), NO_TOKEN=NO_TOKEN, num_warps=SEARCH_WARPS,
    )  # fmt: skip


@triton.jit
def _chunk_tops(
    logits_ptr,
    row_stride,
    chunk_max_ptr,
    chunk_sum_ptr,
    chunk_tops_ptr,
    VOCAB: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    NUM_TOP: tl.constexpr,
):
    row, chunk = tl.program_id(0), tl.program_id(1)
    ids, logits = load_chunk(logits_ptr, row_stride, row, chunk, VOCAB, CHUNK)
    largest = chunk_largest(logits)
    place = row * NUM_CHUNKS + chunk
    tl.store(chunk_max_ptr + place, largest)
    base = tl.where(is_distribution(largest), largest, 0.0)
    tl.store(chunk_sum_ptr + place, tl.sum(tl.exp(logits - base), 0))
    ranks = tl.where(ids < VOCAB, rank_of(logits, ids), LEAST_RANK)
    for index in range(NUM_TOP):
        best = tl.max(ranks, 0)
        tl.store(chunk_tops_ptr + place.to(tl.int64) * NUM_TOP + index, best)
        ranks = tl.where(ranks == best, LEAST_RANK, ranks)


@triton.jit
def _row_tops(
    logits_ptr,
    row_stride,
    tokens_ptr,
    chunk_max_ptr,
    chunk_sum_ptr,
    chunk_tops_ptr,
    logprob_ptr,
    top_ids_ptr,
    top_logprobs_ptr,
    NUM_CHUNKS: tl.constexpr,
    CHUNKS_BLOCK: tl.constexpr,
    NUM_TOP: tl.constexpr,
    TOPS_BLOCK: tl.constexpr,
    NO_TOKEN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    maxima = load_chunk_maxima(chunk_max_ptr, row, NUM_CHUNKS, CHUNKS_BLOCK)
    largest = tl.max(maxima, 0)
    is_sound = is_distribution(largest)
    chunks = tl.arange(0, CHUNKS_BLOCK)
    sums = tl.load(chunk_sum_ptr + row * NUM_CHUNKS + chunks, mask=chunks < NUM_CHUNKS, other=0)
    # A chunk of nothing but minus infinity has the sum 0.
    total = tl.sum(sums * tl.exp(tl.where(is_sound, maxima - largest, 0.0)), 0)
    nan = float("nan")
    whole = tl.where(is_sound, largest + tl.log(total), nan)

    token = tl.load(tokens_ptr + row)
    row_ptr = logits_ptr + row * row_stride
    logit = tl.load(row_ptr + tl.maximum(token, 0)).to(tl.float32)
    tl.store(logprob_ptr + row, tl.where(token < 0, nan, logit - whole))

    places = tl.arange(0, TOPS_BLOCK)
    tops_ptr = chunk_tops_ptr + row * (NUM_CHUNKS * NUM_TOP) + places
    ranks = tl.load(tops_ptr, mask=places < NUM_CHUNKS * NUM_TOP, other=LEAST_RANK)
    for index in range(NUM_TOP):
        best = tl.max(ranks, 0)
        has_id = best > LEAST_RANK
        top_id = tl.where(has_id, id_of(best), 0)
        logit = tl.where(has_id, tl.load(row_ptr + top_id).to(tl.float32), -float("inf"))
        tl.store(top_ids_ptr + row * NUM_TOP + index, tl.where(has_id & is_sound, top_id, NO_TOKEN))
        tl.store(top_logprobs_ptr + row * NUM_TOP + index, logit - whole)
        ranks = tl.where(ranks == best, LEAST_RANK, ranks)
