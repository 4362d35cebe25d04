"""Sampling of one token per row of logits: four launches, whatever the rows ask for, and no full sort.

Signature and result as in `pagewire.worker.kernels.reference.sampling`, the definition. Weights are integers, so sums
are exact in every order, and the split of a row into chunks of CHUNK ids changes nothing.

    _find_maxima   (row, chunk)  the chunk's largest logit and its id
    _weigh         (row, part)   the sum of each chunk's weights; for top-k and top-p also how many logits lie in each
                                 of NUM_BINS bins below the row's largest
    _pick          (row, part)   rows that need no more are drawn: the greedy token, or the id inside the chunk where
                                 the running sum passes the draw. For top-k and top-p, the bins say which logits can
                                 matter: few, whose ids are written down
    search         (row)         top-k and top-p: bisection for the lowest rank that each keeps, and for the drawn id,
                                 over the ids written down, or over the row where there were too many of them

Chunks are separate programs so that a single row, 75 chunks for Qwen3, occupies most of the card. Where there are many
rows a part is several chunks, whose program looks for the row's largest logit once, and what a batch without top-k and
top-p does not need is launched in few programs: of 96 registers a thread, five are resident, and 19,200 of them would
take longer to come and go than the logits to be read.

The search by pivots instead of a sort follows Qrita (arXiv 2602.01518) and FlashInfer's sampling by rejection (arXiv
2501.01005), the bins a radix select's first digit. Here the result is exact, and one and the same on every device.

Floor in bytes per row of V logits of 4 bytes: 4 V read twice; with top-k a third reading of the few chunks that can
matter. 256 rows of Qwen3: 311 MB, 72 µs on an H200; one row: the four launches' latency.
"""

import torch
import triton
import triton.language as tl

from pagewire.wire.plan import NO_TOKEN
from pagewire.worker.kernels.triton.logits import chunk_largest, is_distribution, load_chunk, load_chunk_maxima
from pagewire.worker.kernels.triton.search import FEW_TILE, MANY_TILE, SEARCH_WARPS, search
from pagewire.worker.kernels.triton.weights import (
    bin_of,
    bin_scale,
    is_filtered,
    last_bin_of,
    scaled_draw,
    seed_of,
    temperature_of,
    uniform_bits,
    weight_of,
    weight_rate,
)
from pagewire.worker.kernels.workspaces import NUM_BINS, SamplingWorkspace

WEIGHING_PROGRAMS, PICKING_PROGRAMS = 6400, 1056
"""About 48 and 8 per multiprocessor of an H200, which has 132. A program that weighs costs as much before its first
chunk as for one, so it takes three at 256 rows; more would leave a longer last wave. One that picks reads little, and
mostly nothing."""


def sample(
    logits_SV: torch.Tensor,
    sampling_SP: torch.Tensor,
    position_S: torch.Tensor,
    out_tokens_S: torch.Tensor,
    *,
    workspace: SamplingWorkspace,
) -> None:
    """See `pagewire.worker.kernels.reference.sampling.sample`; the positions are contiguous."""
    workspace.check(logits_SV, sampling_SP, position=position_S, out_tokens=out_tokens_S)
    num_rows, vocab_size = logits_SV.shape
    if num_rows == 0:
        return
    w = workspace
    num_chunks = w.chunk_max_SC.shape[1]

    def parts(num_programs: int) -> tuple[int, int]:
        return num_rows, min(num_chunks, triton.cdiv(num_programs, num_rows))

    stride = logits_SV.stride(0)
    max_candidates = w.candidates_SN.shape[1]
    shape = {
        "VOCAB": vocab_size,
        "NUM_CHUNKS": num_chunks,
        "CHUNKS_BLOCK": triton.next_power_of_2(num_chunks),
        # Such a vocabulary is searched as it is.
        "IS_SMALL": vocab_size <= max_candidates,
    }
    chunk = min(w.chunk, triton.next_power_of_2(vocab_size))
    many_tile = min(MANY_TILE, triton.next_power_of_2(vocab_size))
    _find_maxima[(num_rows, num_chunks)](
        logits_SV, stride, w.chunk_max_SC, w.chunk_best_SC, w.bins_SN, w.num_candidates_S,
        VOCAB=vocab_size, NUM_CHUNKS=num_chunks, CHUNK=chunk, NUM_BINS=NUM_BINS,
    )  # fmt: skip
    _weigh[parts(WEIGHING_PROGRAMS)](
        logits_SV, stride, sampling_SP, w.chunk_max_SC, w.chunk_mass_SC, w.bins_SN,
        **shape, CHUNK=chunk, NUM_BINS=NUM_BINS,
    )  # fmt: skip
    _pick[parts(PICKING_PROGRAMS)](
        logits_SV, stride, sampling_SP, position_S, w.chunk_max_SC, w.chunk_best_SC, w.chunk_mass_SC, w.bins_SN,
        w.num_candidates_S, w.candidates_SN, out_tokens_S,
        **shape, CHUNK=chunk, NUM_BINS=NUM_BINS, MAX_CANDIDATES=max_candidates, NO_TOKEN=NO_TOKEN,
    )  # fmt: skip
    search[(num_rows,)](
        logits_SV, stride, sampling_SP, position_S, w.chunk_max_SC, w.chunk_mass_SC, w.num_candidates_S,
        w.candidates_SN, out_tokens_S,
        **shape, MAX_CANDIDATES=max_candidates, FEW_TILE=FEW_TILE, MANY_TILE=many_tile, num_warps=SEARCH_WARPS,
    )  # fmt: skip


@triton.jit
def _find_maxima(
    logits_ptr,
    row_stride,
    chunk_max_ptr,
    chunk_best_ptr,
    bins_ptr,
    num_candidates_ptr,
    VOCAB: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    NUM_BINS: tl.constexpr,
):
    # Back to front: the head has written the last ids last, and `_weigh` begins with the first. So some of either
    # reading finds the second-level cache warm.
    row, chunk = tl.program_id(0), NUM_CHUNKS - 1 - tl.program_id(1)
    ids, logits = load_chunk(logits_ptr, row_stride, row, chunk, VOCAB, CHUNK)
    largest = chunk_largest(logits)
    tl.store(chunk_max_ptr + row * NUM_CHUNKS + chunk, largest)
    tl.store(chunk_best_ptr + row * NUM_CHUNKS + chunk, tl.min(tl.where(logits == largest, ids, VOCAB), 0))
    if chunk == 0:
        tl.store(bins_ptr + row * NUM_BINS + tl.arange(0, NUM_BINS), tl.zeros((NUM_BINS,), tl.int32))
        tl.store(num_candidates_ptr + row, 0)


@triton.jit
def _weigh(
    logits_ptr,
    row_stride,
    sampling_ptr,
    chunk_max_ptr,
    chunk_mass_ptr,
    bins_ptr,
    VOCAB: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    CHUNKS_BLOCK: tl.constexpr,
    IS_SMALL: tl.constexpr,
    CHUNK: tl.constexpr,
    NUM_BINS: tl.constexpr,
):
    row, part = tl.program_id(0), tl.program_id(1)
    temperature = temperature_of(sampling_ptr, row)
    maxima = load_chunk_maxima(chunk_max_ptr, row, NUM_CHUNKS, CHUNKS_BLOCK)
    largest = tl.max(maxima, 0)
    if is_distribution(largest) & (temperature > 0):
        rate = weight_rate(temperature)
        is_counted = is_filtered(sampling_ptr, row, VOCAB)
        num_own = tl.cdiv(NUM_CHUNKS, tl.num_programs(1))
        for chunk in range(part * num_own, tl.minimum((part + 1) * num_own, NUM_CHUNKS)):
            ids, logits = load_chunk(logits_ptr, row_stride, row, chunk, VOCAB, CHUNK)
            mass = tl.sum(weight_of(logits, largest, rate), 0)
            tl.store(chunk_mass_ptr + row * NUM_CHUNKS + chunk, mass)
            if not IS_SMALL and is_counted:
                bins = bin_of(logits, largest, bin_scale(maxima, largest))
                counts = tl.histogram(bins, NUM_BINS, mask=ids < VOCAB)
                slots = bins_ptr + row * NUM_BINS + tl.arange(0, NUM_BINS)
                tl.atomic_add(slots, counts, mask=counts > 0, sem="relaxed")


@triton.jit
def _pick(
    logits_ptr,
    row_stride,
    sampling_ptr,
    position_ptr,
    chunk_max_ptr,
    chunk_best_ptr,
    chunk_mass_ptr,
    bins_ptr,
    num_candidates_ptr,
    candidates_ptr,
    tokens_ptr,
    VOCAB: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    CHUNKS_BLOCK: tl.constexpr,
    IS_SMALL: tl.constexpr,
    CHUNK: tl.constexpr,
    NUM_BINS: tl.constexpr,
    MAX_CANDIDATES: tl.constexpr,
    NO_TOKEN: tl.constexpr,
):
    row, part = tl.program_id(0), tl.program_id(1)
    temperature = temperature_of(sampling_ptr, row)
    maxima = load_chunk_maxima(chunk_max_ptr, row, NUM_CHUNKS, CHUNKS_BLOCK)
    largest = tl.max(maxima, 0)
    chunks = tl.arange(0, CHUNKS_BLOCK)
    if is_distribution(largest) & (temperature > 0):
        rate = weight_rate(temperature)
        if is_filtered(sampling_ptr, row, VOCAB):
            if not IS_SMALL:
                scale = bin_scale(maxima, largest)
                row_masses = chunk_mass_ptr + row * NUM_CHUNKS
                last_bin = last_bin_of(
                    sampling_ptr, row, bins_ptr + row * NUM_BINS, row_masses, scale, rate,
                    VOCAB, NUM_CHUNKS, CHUNKS_BLOCK,
                )  # fmt: skip
                for chunk in range(part, NUM_CHUNKS, tl.num_programs(1)):
                    chunk_max = tl.load(chunk_max_ptr + row * NUM_CHUNKS + chunk)
                    if bin_of(chunk_max, largest, scale) <= last_bin:
                        ids, logits = load_chunk(logits_ptr, row_stride, row, chunk, VOCAB, CHUNK)
                        is_listed = (bin_of(logits, largest, scale) <= last_bin) & (ids < VOCAB)
                        listed = is_listed.to(tl.int32)
                        first = tl.atomic_add(num_candidates_ptr + row, tl.sum(listed, 0), sem="relaxed")
                        places = first + tl.cumsum(listed, 0) - listed
                        slots = candidates_ptr + row.to(tl.int64) * MAX_CANDIDATES + places
                        tl.store(slots, ids, mask=is_listed & (places < MAX_CANDIDATES))
        elif part == 0:
            mass = tl.load(chunk_mass_ptr + row * NUM_CHUNKS + chunks, mask=chunks < NUM_CHUNKS, other=0)
            draw = uniform_bits(seed_of(sampling_ptr, row), tl.load(position_ptr + row))
            passed = scaled_draw(tl.sum(mass, 0), draw)
            chunk = tl.sum((tl.cumsum(mass, 0) <= passed).to(tl.int32), 0)
            _, logits = load_chunk(logits_ptr, row_stride, row, chunk, VOCAB, CHUNK)
            before = tl.sum(tl.where(chunks < chunk, mass, 0), 0)
            inside = before + tl.cumsum(weight_of(logits, largest, rate), 0)
            tl.store(tokens_ptr + row, chunk * CHUNK + tl.sum((inside <= passed).to(tl.int32), 0))
    elif part == 0:
        best_chunk = tl.min(tl.where(maxima == largest, chunks, CHUNKS_BLOCK - 1), 0)
        best = tl.load(chunk_best_ptr + row * NUM_CHUNKS + best_chunk)
        tl.store(tokens_ptr + row, tl.where(is_distribution(largest), best, NO_TOKEN))
