// Attention of one new token: a task is one KV head and a chunk of the token's context; chunks of one context are put
// together by whoever brings the last.

#pragma once

#include "attention_blocks.h"
#include "kernels.h"
#include "vec.h"

namespace {

using namespace pagewire;

constexpr int kMaxGroup = W == 16 ? 4 : 2;  // query heads that share a load of K and V; the registers' limit

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

// scores[g][t] = q[g] · k[t] for NG heads; q is [NG][D] of Q, scores' rows are kChunkTokens apart. Meanwhile the values
// are on their way from memory.
template <class T, class Q, int NG>
void decode_scores(const Q *q, const Chunk<T> &chunk, int D, float scale, float *scores) {
  const T *k = chunk.k;
  const int64_t *offsets = chunk.offsets;
  const int count = chunk.count;
  for (int t = 0; t < count; t += 4) {
    for (int i = t; i < t + 4 && i < count; ++i) prefetch_row(chunk.v + offsets[i], D);
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
          for (int i = 0; i < 4; ++i) sum[g][i] += query * key[i];
        }
      }
    }
    for (int g = 0; g < NG; ++g) {
      float four[4];
      hsum4(sum[g][0], sum[g][1], sum[g][2], sum[g][3], four);
      for (int i = 0; i < 4; ++i) scores[g * kChunkTokens + t + i] = four[i] * scale;
    }
  }
}

// Scores to weights in place, relative to the largest; the buffer is padded to a whole vector.
PW_INLINE void to_weights(float *scores, int count, float *largest, float *total) {
  for (int t = count; t % W; ++t) scores[t] = kNegInf;
  vf best = splat(kNegInf);
  for (int t = 0; t < count; t += W) best = vmax(best, load(scores + t));
  const float top = hmax(best);
  vf sum = {};
  for (int t = 0; t < count; t += W) {
    const vf weight = vexp(load(scores + t) - top);
    sum += weight;
    store(scores + t, weight);
  }
  *largest = top;
  *total = hsum(sum);
}

// out[g][d] = Σ weights[g][t] · v[t][d] over NV vectors from d = first. Meanwhile the next chunk's keys (if there is one)
// are on their way from memory.
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
      for (int i = 0; i < NV; ++i) sum[g][i] += weight * value[i];
    }
  }
  for (int g = 0; g < NG; ++g)
    for (int i = 0; i < NV; ++i) store(out + g * D + first + i * W, sum[g][i]);
}

template <class T, class Q, int NG>
void decode_group(const Q *q, const Chunk<T> &chunk, const Chunk<T> *next, int D, float scale, float *out,
                  float *largest, float *total) {
  alignas(64) float scores[NG * kChunkTokens];
  decode_scores<T, Q, NG>(q, chunk, D, scale, scores);
  for (int g = 0; g < NG; ++g) to_weights(scores + g * kChunkTokens, chunk.count, largest + g, total + g);
  int d = 0;
  // Rows of 128 in one pass: in two, which leave out half of every row, memory's own prefetcher loses the stream
  // (32 sequences of 270 tokens, 36 ms for 40).
  if constexpr (W == 16 && NG <= 2)
    for (; d + 8 * W <= D; d += 8 * W) decode_values<T, NG, 8>(scores, chunk, d ? nullptr : next, d, D, out);
  for (; d + 4 * W <= D; d += 4 * W) decode_values<T, NG, 4>(scores, chunk, d ? nullptr : next, d, D, out);
  for (; d < D; d += W) decode_values<T, NG, 1>(scores, chunk, d ? nullptr : next, d, D, out);
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

template <class T, class Q>
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
      q = reinterpret_cast<const Q *>(source);
    } else {
      for (int i = 0; i < taken * D; ++i) copy[i] = to_float(source[i]);
      q = copy;
    }
    const Chunk<T> *then = g + taken < G ? nullptr : next;
    switch (taken) {
      case 1: decode_group<T, Q, 1>(q, chunk, then, D, a->scale, out, largest, total); break;
      case 2: decode_group<T, Q, 2>(q, chunk, then, D, a->scale, out, largest, total); break;
      case 3: decode_group<T, Q, kMaxGroup < 3 ? 1 : 3>(q, chunk, then, D, a->scale, out, largest, total); break;
      default: decode_group<T, Q, kMaxGroup>(q, chunk, then, D, a->scale, out, largest, total);
    }
    for (int i = 0; i < taken; ++i) {
      if (item->count == 1) {
        T *target = static_cast<T *>(a->out) + (int64_t(row) * a->num_heads + head + i) * D;
        const float inverse = 1.0f / total[i];
        for (int d = 0; d < D; d += W) store(target + d, load(out + i * D + d) * inverse);
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
    const float *part = a->partials + (int64_t(item->partial) * H + head) * (D + 2);
    const int64_t step = int64_t(H) * (D + 2);
    float largest = kNegInf;
    for (int c = 0; c < item->count; ++c) largest = part[c * step + D] > largest ? part[c * step + D] : largest;
    alignas(64) float sum[kMaxHeadDim] = {};
    float total = 0;
    for (int c = 0; c < item->count; ++c) {
      const float *one = part + c * step;
      const float factor = vexp(splat(one[D] - largest))[0];
      total += factor * one[D + 1];
      for (int d = 0; d < D; d += W) store(sum + d, load(sum + d) + factor * load(one + d));
    }
    T *target = static_cast<T *>(a->out) + (int64_t(row) * H + head) * D;
    for (int d = 0; d < D; d += W) store(target + d, load(sum + d) * (1.0f / total));
  }
}

}  // namespace
