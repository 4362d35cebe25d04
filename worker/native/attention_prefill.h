// Attention of several rows of a prompt: a task is one KV head and a tile of rows, flash attention over tiles of keys.
//
// Both products of a tile run on one microkernel: C[MR][NV · W] += A[MR][depth] · B[depth][NV · W], where an element
// of A and B is a float, or a pair of bf16 that the instruction set multiplies and adds at once.

#pragma once

#include "attention_blocks.h"
#include "kernels.h"
#include "vec.h"

namespace {

using namespace pagewire;

struct Pair {
  uint32_t bits;
};

PW_INLINE vf multiply_add(vf sum, float a, const float *b) { return sum + a * load(b); }

#if defined(__AVX512BF16__)
PW_INLINE vf multiply_add(vf sum, Pair a, const Pair *b) {
  vu pairs;
  std::memcpy(&pairs, b, sizeof pairs);
  return dot_pairs(sum, (vu)_mm512_set1_epi32(int(a.bits)), pairs);
}
#endif

template <class E, int MR, int NV>
PW_INLINE void multiply_block(const E *A, int a_stride, const E *B, int b_stride, float *C, int c_stride, int depth) {
  vf sum[MR][NV];
  for (int m = 0; m < MR; ++m)
    for (int n = 0; n < NV; ++n) sum[m][n] = load(C + m * c_stride + n * W);
  for (int k = 0; k < depth; ++k)
    for (int m = 0; m < MR; ++m) {
      const E element = A[m * a_stride + k];
      for (int n = 0; n < NV; ++n) sum[m][n] = multiply_add(sum[m][n], element, B + k * b_stride + n * W);
    }
  for (int m = 0; m < MR; ++m)
    for (int n = 0; n < NV; ++n) store(C + m * c_stride + n * W, sum[m][n]);
}

template <class E, int NV>
PW_INLINE void multiply_columns(const E *A, int a_stride, const E *B, int b_stride, float *C, int c_stride, int rows,
                                int depth) {
  constexpr int MR = W == 16 ? 6 : 4;
  int m = 0;
  for (; m + MR <= rows; m += MR)
    multiply_block<E, MR, NV>(A + m * a_stride, a_stride, B, b_stride, C + m * c_stride, c_stride, depth);
  for (; m < rows; ++m)
    multiply_block<E, 1, NV>(A + m * a_stride, a_stride, B, b_stride, C + m * c_stride, c_stride, depth);
}

// C[rows][columns] += A · B; columns is a multiple of W.
template <class E>
void multiply(const E *A, int a_stride, const E *B, int b_stride, float *C, int c_stride, int rows, int columns,
              int depth) {
  constexpr int NV = W == 16 ? 4 : 2;
  int n = 0;
  for (; n + NV * W <= columns; n += NV * W)
    multiply_columns<E, NV>(A, a_stride, B + n, b_stride, C + n, c_stride, rows, depth);
  for (; n < columns; n += W) multiply_columns<E, 1>(A, a_stride, B + n, b_stride, C + n, c_stride, rows, depth);
}

PW_INLINE int depth_of(const float *, int values) { return values; }
PW_INLINE int depth_of(const Pair *, int values) { return (values + 1) / 2; }

// Kᵀ: [D][kTileTokens] of E; columns past `count` are zero.
template <class T>
void pack_keys(const T *k, const int64_t *offsets, int count, int D, float *out) {
  constexpr int R = 8;
  for (int t = 0; t < kTileTokens; t += R)
    for (int d = 0; d < D; ++d)
      for (int i = 0; i < R; ++i) out[d * kTileTokens + t + i] = t + i < count ? to_float(k[offsets[t + i] + d]) : 0.0f;
}

void pack_keys(const bf16 *k, const int64_t *offsets, int count, int D, Pair *out) {
  constexpr int R = 16;
  for (int t = 0; t < kTileTokens; t += R) {
    alignas(64) uint32_t rows[R][kMaxHeadDim / 2];
    for (int i = 0; i < R; ++i) {
      if (t + i < count)
        std::memcpy(rows[i], k + offsets[t + i], D * sizeof(bf16));
      else
        std::memset(rows[i], 0, D * sizeof(bf16));
    }
    for (int d = 0; d < D / 2; ++d)
      for (int i = 0; i < R; ++i) out[d * kTileTokens + t + i].bits = rows[i][d];
  }
}

// V: [kTileTokens][D] of float, or [kTileTokens / 2][D] of pairs of neighbouring tokens. Only `count` rows (rounded
// up to a pair, the missing one zero) are filled.
template <class T>
void pack_values(const T *v, const int64_t *offsets, int count, int D, float *out) {
  for (int t = 0; t < count; ++t)
    for (int d = 0; d < D; d += W) store(out + t * D + d, load(v + offsets[t] + d));
}

void pack_values(const bf16 *v, const int64_t *offsets, int count, int D, Pair *out) {
  for (int t = 0; t < count; t += 2) {
    const bf16 *low = v + offsets[t];
    const bf16 *high = v + offsets[t + 1 < count ? t + 1 : t];
    const uint32_t keep = t + 1 < count ? 0xffff0000u : 0;
    for (int d = 0; d < D; ++d) out[t / 2 * D + d].bits = low[d].bits | ((uint32_t(high[d].bits) << 16) & keep);
  }
}

template <class T>
PW_INLINE void pack_queries(const T *q, int D, float *out) {
  for (int d = 0; d < D; d += W) store(out + d, load(q + d));
}

PW_INLINE void pack_queries(const bf16 *q, int D, Pair *out) { std::memcpy(out, q, D * sizeof(bf16)); }

PW_INLINE void put_weights(float *out, int index, vf weights) { store(out + index, weights); }
PW_INLINE void put_weights(Pair *out, int index, vf weights) {
  store(reinterpret_cast<bf16 *>(out) + index, weights);
}

// `rows` rows of one sequence, `heads` of the query heads of one KV head: rows × heads ≤ kTileQueries vectors.
template <class T, class E>
void prefill_tile(const AttentionArgs *a, int seq, int first_row, int rows, int kv_head, int first_head, int heads) {
  const int D = a->head_dim, num_queries = rows * heads;
  const int start = a->query_starts[seq];
  const int past = a->context_lens[seq] - (a->query_starts[seq + 1] - start);
  const int seen = past + first_row + rows;  // by the tile's last row
  const T *q = static_cast<const T *>(a->q) + (start + first_row) * a->q_stride + int64_t(first_head) * D;
  const T *k = static_cast<const T *>(a->k), *v = static_cast<const T *>(a->v);

  alignas(64) E queries[kTileQueries * kMaxHeadDim];
  alignas(64) E packed[kTileTokens * kMaxHeadDim];  // K, then V
  alignas(64) float scores[kTileQueries * kTileTokens];
  alignas(64) E weights[kTileQueries * kTileTokens];
  alignas(64) float out[kTileQueries * kMaxHeadDim];
  float largest[kTileQueries], total[kTileQueries];
  const int q_width = depth_of(queries, D);
  for (int i = 0; i < num_queries; ++i) {
    pack_queries(q + (i / heads) * a->q_stride + int64_t(i % heads) * D, D, queries + i * q_width);
    largest[i] = kNegInf;
    total[i] = 0;
  }
  std::memset(out, 0, sizeof(float) * num_queries * D);

  for (int first = 0; first < seen; first += kTileTokens) {
    const int count = seen - first < kTileTokens ? seen - first : kTileTokens;
    const int w_width = depth_of(weights, kTileTokens);
    int64_t offsets[kTileTokens];
    token_offsets(a, seq, kv_head, first, count, offsets);
    pack_keys(k, offsets, count, D, packed);
    std::memset(scores, 0, sizeof(float) * num_queries * kTileTokens);
    multiply(queries, q_width, packed, kTileTokens, scores, kTileTokens, num_queries, kTileTokens, q_width);
    for (int i = 0; i < num_queries; ++i) {
      float *row = scores + i * kTileTokens;
      int visible = past + first_row + i / heads + 1 - first;
      visible = visible > count ? count : visible < 0 ? 0 : visible;
      for (int t = visible; t < kTileTokens; ++t) row[t] = kNegInf;
      vf best = splat(kNegInf);
      for (int t = 0; t < kTileTokens; t += W) best = vmax(best, load(row + t));
      const float top = hmax(best) * a->scale;
      const float next = top > largest[i] ? top : largest[i];
      if (visible == 0) {  // nothing of this tile; a difference of infinities would be no number
        std::memset(weights + i * w_width, 0, sizeof(E) * w_width);
        continue;
      }
      vf sum = {};
      for (int t = 0; t < kTileTokens; t += W) {
        const vf weight = vexp(load(row + t) * a->scale - next);
        sum += weight;
        put_weights(weights + i * w_width, t, weight);
      }
      if (next > largest[i]) {
        const float factor = vexp(splat(largest[i] - next))[0];
        for (int d = 0; d < D; d += W) store(out + i * D + d, load(out + i * D + d) * factor);
        total[i] *= factor;
        largest[i] = next;
      }
      total[i] += hsum(sum);
    }
    pack_values(v, offsets, count, D, packed);
    multiply(weights, w_width, packed, D, out, D, num_queries, D, depth_of(packed, count));
  }
  for (int i = 0; i < num_queries; ++i) {
    const int64_t row = start + first_row + i / heads;
    T *target = static_cast<T *>(a->out) + (row * a->num_heads + first_head + i % heads) * D;
    const float inverse = 1.0f / total[i];
    for (int d = 0; d < D; d += W) store(target + d, load(out + i * D + d) * inverse);
  }
}

template <class T, class E>
void prefill_piece(const AttentionArgs *a, const AttentionItem *item, int kv_head) {
  const int G = a->num_heads / a->num_kv_heads;
  const int heads = G < kTileQueries ? G : kTileQueries;
  for (int g = 0; g < G; g += heads) {
    const int taken = G - g < heads ? G - g : heads;
    prefill_tile<T, E>(a, item->seq, item->first, item->count, kv_head, kv_head * G + g, taken);
  }
}

}  // namespace
