"""Weights of ids as integers, and draws: `pagewire.worker.kernels.reference.sampling` inside a kernel, the uniform of a
seed and a position included, to the last bit."""

import triton
import triton.language as tl

from pagewire.wire.columns import ROW_WORDS, first_word
from pagewire.worker.kernels.contract import DRAW_BITS, LOG2_E, MASS_BITS, MAX_RATE, P_BITS
from pagewire.worker.kernels.workspaces import NUM_BINS

_LOG2_E, _MAX_RATE, _MASS_SCALE = tl.constexpr(LOG2_E), tl.constexpr(MAX_RATE), tl.constexpr(2.0**MASS_BITS)
_DRAW_BITS, _DRAW_MASK = tl.constexpr(DRAW_BITS), tl.constexpr((1 << DRAW_BITS) - 1)
_P_BITS, _P_MASK, _P_SCALE = tl.constexpr(P_BITS), tl.constexpr((1 << P_BITS) - 1), tl.constexpr(2.0**P_BITS)
_NUM_BINS, _LAST_BIN = tl.constexpr(NUM_BINS), tl.constexpr(NUM_BINS - 1)

_ROW_WORDS = tl.constexpr(ROW_WORDS)
_SEED, _TEMPERATURE = tl.constexpr(first_word("seed")), tl.constexpr(first_word("temperature"))
_TOP_K, _TOP_P = tl.constexpr(first_word("top_k")), tl.constexpr(first_word("top_p"))
_MIN_P = tl.constexpr(first_word("min_p"))


@triton.jit
def temperature_of(sampling_ptr, row):
    return tl.load(sampling_ptr + row * _ROW_WORDS + _TEMPERATURE).to(tl.float32, bitcast=True)


@triton.jit
def top_k_of(sampling_ptr, row):
    return tl.load(sampling_ptr + row * _ROW_WORDS + _TOP_K)


@triton.jit
def top_p_of(sampling_ptr, row):
    return tl.load(sampling_ptr + row * _ROW_WORDS + _TOP_P).to(tl.float32, bitcast=True)


@triton.jit
def min_p_of(sampling_ptr, row):
    return tl.load(sampling_ptr + row * _ROW_WORDS + _MIN_P).to(tl.float32, bitcast=True)


@triton.jit
def least_weight(min_p):
    """int64: ceil(p · 2^42). The product is exact in float32, and whole where it is large."""
    scaled = min_p * _MASS_SCALE
    whole = scaled.to(tl.int64)
    return whole + (whole.to(tl.float32) < scaled).to(tl.int64)


@triton.jit
def seed_of(sampling_ptr, row):
    """int64: the seed's 64 bits."""
    return tl.load((sampling_ptr + row * _ROW_WORDS + _SEED).to(tl.pointer_type(tl.int64)))


@triton.jit
def is_filtered(sampling_ptr, row, VOCAB: tl.constexpr):
    """Whether top-k, top-p or min-p leave anything out."""
    top_k = top_k_of(sampling_ptr, row)
    return ((top_k > 0) & (top_k < VOCAB)) | (top_p_of(sampling_ptr, row) < 1) | (min_p_of(sampling_ptr, row) > 0)


@triton.jit
def weight_rate(temperature):
    """log2(e) / temperature, temperature > 0, divided as IEEE has it. Once per row: per logit the division's branch and
    special functions would take longer than the load."""
    return tl.minimum(tl.div_rn(tl.full((), _LOG2_E, tl.float32), temperature), _MAX_RATE)


@triton.jit
def weight_of(logits, largest, rate):
    """int64: floor(2^42 · 2^((logit - largest) · rate))."""
    return (tl.exp2((logits - largest) * rate) * _MASS_SCALE).to(tl.int64)


@triton.jit
def top_p_target(total, top_p):
    """ceil(p · total) for p < 1, p to 31 bits below the point; at least 1, so that one id is kept."""
    p = (top_p * _P_SCALE).to(tl.int64)
    low = total & _P_MASK
    target = p * (total >> _P_BITS) + ((p * low + _P_MASK) >> _P_BITS)
    return tl.maximum(target, 1)


@triton.jit
def scaled_draw(total, draw):
    """floor(draw · total / 2^24)."""
    low = total & _DRAW_MASK
    return draw * (total >> _DRAW_BITS) + ((draw * low) >> _DRAW_BITS)


@triton.jit
def bin_scale(chunk_maxima, largest):
    """Bins per unit of logit, so that they reach as far below the least of the chunks' maxima as that is below the
    row's largest: the scale is the row's own. Of a normal distribution that is the upper tenth, of a model's usually
    everything."""
    least = tl.min(tl.where(chunk_maxima > -float("inf"), chunk_maxima, largest), 0)
    reach = tl.minimum(tl.maximum(2 * (largest - least), 1e-30), 1e38)
    return 1.0 / reach * _LAST_BIN


@triton.jit
def bin_of(logits, largest, scale):
    """int32: 0 holds the row's largest logit, the last one everything that lies too far below it."""
    return tl.minimum((largest - logits) * scale, _LAST_BIN).to(tl.int32)


@triton.jit
def last_bin_of(
    sampling_ptr,
    row,
    bins_ptr,
    masses_ptr,
    scale,
    rate,
    VOCAB: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    CHUNKS_BLOCK: tl.constexpr,
):
    """The bin after which no logit of a row that is filtered can be drawn, nor matters for which can."""
    top_k = top_k_of(sampling_ptr, row)
    if (top_k > 0) & (top_k < VOCAB):
        last_bin = last_bin_of_top_k(bins_ptr, top_k)
    elif top_p_of(sampling_ptr, row) >= 1:
        last_bin = last_bin_of_min_p(min_p_of(sampling_ptr, row), scale, rate)
    else:
        chunks = tl.arange(0, CHUNKS_BLOCK)
        total = tl.sum(tl.load(masses_ptr + chunks, mask=chunks < NUM_CHUNKS, other=0), 0)
        spare = total - top_p_target(total, top_p_of(sampling_ptr, row))
        last_bin = last_bin_of_top_p(bins_ptr, scale, rate, spare)
    return last_bin


@triton.jit
def last_bin_of_top_k(bins_ptr, top_k):
    """The bin by which the largest logits are at least top_k."""
    counts = tl.load(bins_ptr + tl.arange(0, _NUM_BINS))
    return tl.sum((tl.cumsum(counts, 0) < top_k).to(tl.int32), 0)


@triton.jit
def last_bin_of_min_p(min_p, scale, rate):
    """The bin by which every logit that weighs at least min_p, above 0, is in; one more, for what rounding may do."""
    depth = tl.div_rn(-tl.log2(min_p), rate)
    return tl.minimum(depth * scale * 1.001 + 1, _LAST_BIN).to(tl.int32)


@triton.jit
def last_bin_of_top_p(bins_ptr, scale, rate, spare):
    """The bin after which all logits together weigh no more than `spare`, which is what top-p may leave out."""
    bins = tl.arange(0, _NUM_BINS) ^ _LAST_BIN  # the least first
    counts = tl.load(bins_ptr + bins).to(tl.float32)
    # No logit of a bin weighs more than one at its upper border; what rounding may add is far below the 1.001.
    border = tl.div_rn(bins.to(tl.float32), scale + tl.zeros_like(counts))
    tails = tl.cumsum(counts * tl.exp2(-border * rate), 0) * 1.001 * _MASS_SCALE
    num_needed = tl.sum((tails > spare.to(tl.float32)).to(tl.int32), 0)
    return tl.maximum(num_needed - 1, 0)


@triton.jit
def uniform_bits(seed, position):
    """The uniform of a seed (int64, the bits of the unsigned number) and a position, times 2^24: int64."""
    gamma = tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
    count = position.to(tl.int64).to(tl.uint64, bitcast=True) + tl.full((), 1, tl.uint64)
    hashed = _mix(_mix(seed.to(tl.uint64, bitcast=True) + gamma) + gamma * count)
    return (hashed >> 40).to(tl.int64)


@triton.jit
def _mix(z):
    z = (z ^ (z >> 30)) * tl.full((), 0xBF58476D1CE4E5B9, tl.uint64)
    z = (z ^ (z >> 27)) * tl.full((), 0x94D049BB133111EB, tl.uint64)
    return z ^ (z >> 31)
