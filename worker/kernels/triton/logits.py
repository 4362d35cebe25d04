"""Rows of logits, as all kernels over them read them: chunks, the row's largest logit, and a number per id that orders
as (logit, -id) does."""

import triton
import triton.language as tl

_ID_BITS, _ID_MASK = tl.constexpr(20), tl.constexpr((1 << 20) - 1)
"""A rank has the logit's order above, and below it what the id leaves of 2^20 - 1; `MAX_VOCAB_SIZE` is 2^20."""
LEAST_RANK = tl.constexpr(-(1 << 62))
MOST_RANK = tl.constexpr(1 << 62)
"""Below and above the rank of every logit."""


@triton.jit
def load_chunk(logits_ptr, row_stride, row, chunk, VOCAB: tl.constexpr, CHUNK: tl.constexpr):
    """(ids, logits in fp32) of one chunk; past the vocabulary's end a logit is minus infinity."""
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    logits = tl.load(logits_ptr + row.to(tl.int64) * row_stride + ids, mask=ids < VOCAB, other=-float("inf"))
    return ids, logits.to(tl.float32)


@triton.jit
def chunk_largest(logits):
    """The largest logit; infinity where one is NaN, so that the row is seen not to be a distribution."""
    is_nan = logits != logits
    largest = tl.max(tl.where(is_nan, -float("inf"), logits), 0)
    return tl.where(tl.max(is_nan.to(tl.int32), 0) > 0, float("inf"), largest)


@triton.jit
def load_chunk_maxima(chunk_max_ptr, row, NUM_CHUNKS: tl.constexpr, CHUNKS_BLOCK: tl.constexpr):
    """A row's largest logits by chunks; minus infinity past the last."""
    chunks = tl.arange(0, CHUNKS_BLOCK)
    return tl.load(chunk_max_ptr + row * NUM_CHUNKS + chunks, mask=chunks < NUM_CHUNKS, other=-float("inf"))


@triton.jit
def is_distribution(largest):
    """Of a row, by its largest logit as above."""
    return (largest > -float("inf")) & (largest < float("inf"))


@triton.jit
def rank_of(logits, ids):
    """int64: higher for larger logits, among equals for lower ids; unique in a row."""
    bits = tl.where(logits == 0, 0.0, logits).to(tl.int32, bitcast=True)  # -0 and 0 are equal
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << _ID_BITS) | (ids ^ _ID_MASK).to(tl.int64)


@triton.jit
def id_of(rank):
    """The id that a rank was made of."""
    return ((rank & _ID_MASK) ^ _ID_MASK).to(tl.int32)
