// Attention of one new token: a task is one KV head and a chunk of the token's context; chunks of one context are put
// together by whoever brings the last. attention_prefill.h comes to the same bits.

#pragma once

#include "attention_blocks.h"
#include "kernels.h"
#include "vec.h"

namespace {

using namespace pagewire;

// What weights and values are multiplied as: a float, or a pair of bf16 of neighbouring tokens, which the instruction set
// multiplies and adds at once. Both take 4 bytes.
struct Pair {
  uint32_t bits;
};

constexpr int kMaxGroup = W == 16 ? 4 : 2;  // query heads that share a load of K and V; the registers' limit

template <class T>
PW_INLINE void widen_row(const T *row, int count, float *out) {
  for (int d = 0; d < count; d += W) store(out + d, load(row + d));
}

#if defined(__AVX512BF16__)
PW_INLINE vu pair_of(const Pair *p) {
  int32_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return (vu)_mm512_set1_epi32(bits);
}
#endif

// What attention_prefill.h shares is compiled once: two copies of one expression need not be rounded alike.
#define PW_ONCE __attribute__((noinline))

// One KV head's keys and values of a chunk: token t's are `offsets[t]` further on.
template <class T>
struct Chunk {
  const T *k;
  const T *v;
  int64_t offsets[kChunkTokens];
  int count;
};

template <class T>
PW_INLINE void prefetch_row(const T *row, int D) {
  for (int d = 0; d < D; d += 64 / int(sizeof(T))) __builtin_prefetch(row + d, 0, 2);
}

// scores[g][t] = q[g] · k[t] for NG query vectors; q is [NG][D] of Q, scores' rows are kChunkTokens apart and written to
// a multiple of 16. Meanwhile the values are on their way from memory. attention_products.h adds up in the same order.
template <class T, class Q, int NG, int kD>
void score_heads(const Q *q, const T *k, const int64_t *offsets, int count, const T *v, int head_dim, float scale,
                 float *scores) {
  const int D = kD ? kD : head_dim;
#if defined(__AVX512F__)
  alignas(64) float folded[4][NG][W];
  if (count % 16) std::memset(folded, 0, sizeof folded);
#endif
  for (int t = 0; t < count; t += 4) {
    for (int i = t; i < t + 4 && i < count; ++i) prefetch_row(v + offsets[i], D);
    const T *rows[4];
    for (int i = 0; i < 4; ++i) rows[i] = k + offsets[t + i < count ? t + i : count - 1];
    vf sum[NG][4] = {};
#if defined(__AVX512BF16__)
    if constexpr (sizeof(Q) == 2) {
      for (int d = 0; d < D; d += 32) {
        const __mmask32 mask = D - d >= 32 ? 0xffffffffu : 0xffffu;
        vu key[4];
        for (int i = 0; i < 4; ++i) key[i] = (vu)_mm512_maskz_loadu_epi16(mask, rows[i] + d);
        for (int g = 0; g < NG; ++g) {
          const vu query = (vu)_mm512_maskz_loadu_epi16(mask, q + g * D + d);
          for (int i = 0; i < 4; ++i) sum[g][i] = dot_pairs(sum[g][i], query, key[i]);
        }
      }
    } else
#endif
    {
      for (int d = 0; d < D; d += W) {
        vf key[4];
        for (int i = 0; i < 4; ++i) key[i] = load(rows[i] + d);
        for (int g = 0; g < NG; ++g) {
          const vf query = load(q + g * D + d);
          for (int i = 0; i < 4; ++i) sum[g][i] = multiply_add(sum[g][i], query, key[i]);
        }
      }
    }
#if defined(__AVX512F__)
    for (int g = 0; g < NG; ++g) store(folded[t / 4 % 4][g], fold4(sum[g][0], sum[g][1], sum[g][2], sum[g][3]));
    if (t % 16 == 12 || t + 4 >= count)
      for (int g = 0; g < NG; ++g) {
        const vf all = fold16(load(folded[0][g]), load(folded[1][g]), load(folded[2][g]), load(folded[3][g]));
        store(scores + g * kChunkTokens + t / 16 * 16, all * scale);
      }
    // The queries are loaded again: to keep them, the compiler would put the sums on the stack.
    asm volatile("" ::: "memory");
#else
    for (int g = 0; g < NG; ++g) {
      float four[4];
      hsum4(sum[g][0], sum[g][1], sum[g][2], sum[g][3], four);
      for (int i = 0; i < 4; ++i) scores[g * kChunkTokens + t + i] = four[i] * scale;
    }
#endif
  }
}

// The usual lengths of a head are constants: a sixth faster.
template <class T, class Q, int NG>
PW_INLINE void score(const Q *q, const T *k, const int64_t *offsets, int count, const T *v, int D, float scale,
                     float *scores) {
  switch (D) {
    case 128: return score_heads<T, Q, NG, 128>(q, k, offsets, count, v, D, scale, scores);
    case 64: return score_heads<T, Q, NG, 64>(q, k, offsets, count, v, D, scale, scores);
    default: return score_heads<T, Q, NG, 0>(q, k, offsets, count, v, D, scale, scores);
  }
}

PW_INLINE void put_weights(float *weights, int t, vf value) { store(weights + t, value); }
PW_INLINE void put_weights(Pair *weights, int t, vf value) { store(reinterpret_cast<bf16 *>(weights) + t, value); }

// Scores to weights in place, relative to the largest; 0 from `count` to `end`. A row of scores has room for whole
// vectors. The sum is that of the weights before they are rounded to bf16.
template <class E>
PW_ONCE void to_weights(float *scores, int count, int end, float *largest, float *total) {
  for (int t = count; t % W; ++t) scores[t] = kNegInf;
  vf best = splat(kNegInf);
  int t = 0;
  for (; t < count; t += W) best = vmax(best, load(scores + t));
  const float top = hmax(best);
  E *weights = reinterpret_cast<E *>(scores);
  vf sum = {};
  for (t = 0; t < count; t += W) {
    const vf weight = vexp(load(scores + t) - top);
    sum += weight;
    put_weights(weights, t, weight);
  }
  for (; t < end; t += W) put_weights(weights, t, vf{});
  *largest = top;
  *total = hsum(sum);
}

// out[g][d] = Σ weights[g][t] · v[t][d] over NV vectors from d = first, token after token. Meanwhile the next chunk's
// keys (if there is one) are on their way from memory.
template <class T, int NG, int NV>
PW_INLINE void decode_values(const float *weights, const Chunk<T> &chunk, const Chunk<T> *next, int first, int D,
                             float *out) {
  vf sum[NG][NV] = {};
  for (int t = 0; t < chunk.count; ++t) {
    if (next && t < next->count) prefetch_row(next->k + next->offsets[t], D);
    const T *row = chunk.v + chunk.offsets[t] + first;
    vf value[NV];
    for (int i = 0; i < NV; ++i) value[i] = load(row + i * W);
    for (int g = 0; g < NG; ++g) {
      const vf weight = splat(weights[g * kChunkTokens + t]);
      for (int i = 0; i < NV; ++i) sum[g][i] = multiply_add(sum[g][i], weight, value[i]);
    }
  }
  for (int g = 0; g < NG; ++g)
    for (int i = 0; i < NV; ++i) store(out + g * D + first + i * W, sum[g][i]);
}

#if defined(__AVX512BF16__)
// The same by pairs of tokens. Interleaving two rows leaves their values in another order, which is mended at the end:
// `low` and `high` have those of 32, four and four.
template <class T, int NG, int NV>
PW_INLINE void decode_values(const Pair *weights, const Chunk<T> &chunk, const Chunk<T> *next, int first, int D,
                             float *out) {
  constexpr int NP = (NV + 1) / 2;
  constexpr __mmask32 last = NV % 2 ? 0xffffu : 0xffffffffu;
  vf low[NG][NP] = {}, high[NG][NP] = {};
  for (int t = 0; t < chunk.count; t += 2) {
    for (int i = t; next && i < t + 2 && i < next->count; ++i) prefetch_row(next->k + next->offsets[i], D);
    const bool is_pair = t + 1 < chunk.count;
    const T *even = chunk.v + chunk.offsets[t] + first;
    const T *odd = chunk.v + chunk.offsets[is_pair ? t + 1 : t] + first;
    vu one[NP], other[NP];
    for (int i = 0; i < NP; ++i) {
      const __mmask32 mask = i + 1 < NP ? 0xffffffffu : last;
      const __m512i a = _mm512_maskz_loadu_epi16(mask, even + i * 32);
      const __m512i b = _mm512_maskz_loadu_epi16(is_pair ? mask : 0, odd + i * 32);
      one[i] = (vu)_mm512_unpacklo_epi16(a, b);
      other[i] = (vu)_mm512_unpackhi_epi16(a, b);
    }
    for (int g = 0; g < NG; ++g) {
      const vu weight = pair_of(weights + g * kChunkTokens + t / 2);
      for (int i = 0; i < NP; ++i) {
        low[g][i] = dot_pairs(low[g][i], weight, one[i]);
        high[g][i] = dot_pairs(high[g][i], weight, other[i]);
      }
    }
  }
  const __m512i front = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i back = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  for (int g = 0; g < NG; ++g)
    for (int i = 0; i < NP; ++i) {
      float *target = out + g * D + first + i * 32;
      store(target, (vf)_mm512_permutex2var_ps((__m512)low[g][i], front, (__m512)high[g][i]));
      if (2 * i + 1 < NV) store(target + W, (vf)_mm512_permutex2var_ps((__m512)low[g][i], back, (__m512)high[g][i]));
    }
}
#endif

template <class T, class Q, class E, int NG>
void decode_group(const Q *q, const Chunk<T> &chunk, const Chunk<T> *next, int D, float scale, float *out,
                  float *largest, float *total) {
  alignas(64) float scores[NG * kChunkTokens];
  score<T, Q, NG>(q, chunk.k, chunk.offsets, chunk.count, chunk.v, D, scale, scores);
  for (int g = 0; g < NG; ++g)
    to_weights<E>(scores + g * kChunkTokens, chunk.count, chunk.count, largest + g, total + g);
  const E *weights = reinterpret_cast<const E *>(scores);
  int d = 0;
  // Rows of 128 in one pass: in two, which leave out half of every row, memory's own prefetcher loses the stream
  // (32 sequences of 270 tokens, 36 ms for 40).
  if constexpr (W == 16 && NG <= 2)
    for (; d + 8 * W <= D; d += 8 * W) decode_values<T, NG, 8>(weights, chunk, d ? nullptr : next, d, D, out);
  for (; d + 4 * W <= D; d += 4 * W) decode_values<T, NG, 4>(weights, chunk, d ? nullptr : next, d, D, out);
  for (; d < D; d += W) decode_values<T, NG, 1>(weights, chunk, d ? nullptr : next, d, D, out);
}

// Adds the result of a row's next chunk to that of the chunks before it, of which there may be none: largest -∞, the
// rest 0.
PW_ONCE void merge(const float *part, float part_largest, float part_total, int D, float *sum, float *largest,
                   float *total) {
  if (part_largest > *largest) {
    const float factor = vexp(splat(*largest - part_largest))[0];
    for (int d = 0; d < D; d += W) store(sum + d, load(sum + d) * factor);
    *total *= factor;
    *largest = part_largest;
  }
  const float factor = vexp(splat(part_largest - *largest))[0];
  for (int d = 0; d < D; d += W) store(sum + d, load(sum + d) + factor * load(part + d));
  *total += factor * part_total;
}

template <class T>
PW_ONCE void put_result(const float *sum, float total, int D, T *out) {
  const float inverse = 1.0f / total;
  for (int d = 0; d < D; d += W) store(out + d, load(sum + d) * inverse);
}

template <class T>
PW_INLINE void find_chunk(const AttentionArgs *a, const AttentionItem *item, int kv_head, Chunk<T> *chunk) {
  const int first = item->first * kChunkTokens;
  const int left = a->context_lens[item->seq] - first;
  chunk->k = static_cast<const T *>(a->k);
  chunk->v = static_cast<const T *>(a->v);
  chunk->count = left < kChunkTokens ? left : kChunkTokens;
  token_offsets(a, item->seq, kv_head, first, chunk->count, chunk->offsets);
}

template <class T, class Q, class E>
void decode_chunk(const AttentionArgs *a, const AttentionItem *item, int kv_head, const Chunk<T> &chunk,
                  const Chunk<T> *next) {
  const int D = a->head_dim, G = a->num_heads / a->num_kv_heads, K = a->num_kv_heads;
  const int row = a->query_starts[item->seq];
  for (int g = 0; g < G;) {
    const int taken = G - g < kMaxGroup ? G - g : kMaxGroup;
    const int head = kv_head * G + g;
    const T *source = static_cast<const T *>(a->q) + row * a->q_stride + int64_t(head) * D;
    alignas(64) float out[kMaxGroup * kMaxHeadDim];
    float largest[kMaxGroup], total[kMaxGroup];
    alignas(64) Q copy[kMaxGroup * kMaxHeadDim];
    const Q *q;
    if constexpr (sizeof(Q) == sizeof(T)) {
      q = source;
    } else {
      widen_row(source, taken * D, copy);
      q = copy;
    }
    const Chunk<T> *then = g + taken < G ? nullptr : next;
    switch (taken) {
      case 1: decode_group<T, Q, E, 1>(q, chunk, then, D, a->scale, out, largest, total); break;
      case 2: decode_group<T, Q, E, 2>(q, chunk, then, D, a->scale, out, largest, total); break;
      case 3: decode_group<T, Q, E, kMaxGroup < 3 ? 1 : 3>(q, chunk, then, D, a->scale, out, largest, total); break;
      default: decode_group<T, Q, E, kMaxGroup>(q, chunk, then, D, a->scale, out, largest, total);
    }
    for (int i = 0; i < taken; ++i) {
      if (item->count == 1) {
        put_result(out + i * D, total[i], D, static_cast<T *>(a->out) + (int64_t(row) * a->num_heads + head + i) * D);
      } else {
        float *part = a->partials +
                      (int64_t(item->partial + item->first) * K * G + kv_head * G + g + i) * (D + 2);
        std::memcpy(part, out + i * D, D * sizeof(float));
        part[D] = largest[i];
        part[D + 1] = total[i];
      }
    }
    g += taken;
  }
}

// Puts the chunks of one sequence together, in their order.
template <class T>
void merge_chunks(const AttentionArgs *a, const AttentionItem *item, int kv_head) {
  const int D = a->head_dim, H = a->num_heads, G = H / a->num_kv_heads;
  const int row = a->query_starts[item->seq];
  for (int g = 0; g < G; ++g) {
    const int head = kv_head * G + g;
    alignas(64) float sum[kMaxHeadDim] = {};
    float largest = kNegInf, total = 0;
    for (int c = 0; c < item->count; ++c) {
      const float *part = a->partials + (int64_t(item->partial + c) * H + head) * (D + 2);
      merge(part, part[D], part[D + 1], D, sum, &largest, &total);
    }
    put_result(sum, total, D, static_cast<T *>(a->out) + (int64_t(row) * H + head) * D);
  }
}

}  // namespace
