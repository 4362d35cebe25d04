// The two products of a prompt's tile: its queries times keys, and its weights times values. Both run in blocks of rows
// and columns, and come to the bits of attention_decode.h, whose rows are added up otherwise.
//
// A decoding row keeps as many sums of a score as a vector has lanes, each over every W-th value of the head, and adds
// the lanes up at the end. Here a lane is a key: of a block's scores all first sums are made, then all second ones, and
// whole vectors are added in the order in which the lanes would be. So no vector is added up across.

#pragma once

#include <type_traits>

#include "attention_decode.h"
#include "kernels.h"
#include "vec.h"

namespace {

using namespace pagewire;

constexpr int kBlockRows = 6;  // with the vectors, the registers' limit
constexpr int kBlockVectors = W == 16 ? 4 : 2;
constexpr int kBlockColumns = kBlockVectors * W;
constexpr int kPaddedQueries = kTileQueries + kBlockRows - 1;  // so that rows from any one on are whole blocks

PW_INLINE vf multiply_add(vf sum, const float *a, vf b) { return multiply_add(sum, splat(*a), b); }
PW_INLINE vf vector_at(const float *p) { return load(p); }

#if defined(__AVX512BF16__)
PW_INLINE vf multiply_add(vf sum, const Pair *a, vu b) { return dot_pairs(sum, pair_of(a), b); }

PW_INLINE vu vector_at(const Pair *p) {
  vu pairs;
  std::memcpy(&pairs, p, sizeof pairs);
  return pairs;
}
#endif

// How many values one of E holds.
template <class E>
constexpr int values_in() {
  return std::is_same<E, Pair>::value ? 2 : 1;
}

// A head's values in vectors of E, the last one filled up with 0.
template <class E>
PW_INLINE int vectors_of(int D) {
  return (D / values_in<E>() + W - 1) / W;
}

// Up to W of E, as the bits of floats, of a row of D values.
template <class T>
PW_INLINE vf row_vector(const T *row, int first, int, float) {
  return load(row + first);
}

#if defined(__AVX512BF16__)
PW_INLINE vf row_vector(const bf16 *row, int first, int D, Pair) {
  const __mmask32 mask = D - 2 * first >= 2 * W ? 0xffffffffu : 0xffffu;
  return bits_to_float((vu)_mm512_maskz_loadu_epi16(mask, row + 2 * first));
}
#endif

// A query in the order in which products are summed: [W][vectors_of(D)], one lane's values after the other's.
template <class E, class T>
void pack_query(const T *q, int D, E *out) {
  const int vectors = vectors_of<E>(D);
  for (int i = 0; i < vectors; ++i) {
    float values[W];
    store(values, row_vector(q, i * W, D, E{}));
    for (int l = 0; l < W; ++l) std::memcpy(out + kLaneOrder[l] * vectors + i, values + l, sizeof(E));
  }
}

// Keys in the same order: panels of kBlockColumns keys, in each [W][vectors_of(D)][kBlockColumns]. Whole vectors of keys
// are written; the last key stands for those that are missing.
template <class E, class T>
void pack_keys(const T *k, const int64_t *offsets, int count, int D, E *out) {
  const int vectors = vectors_of<E>(D);
  for (int t = 0; t < (count + W - 1) / W * W; t += 4) {
    const T *rows[4];
    for (int i = 0; i < 4; ++i) rows[i] = k + offsets[t + i < count ? t + i : count - 1];
    E *panel = out + t / kBlockColumns * (vectors * W * kBlockColumns) + t % kBlockColumns;
    for (int i = 0; i < vectors; ++i) {
      vf row[4];
      for (int j = 0; j < 4; ++j) row[j] = row_vector(rows[j], i * W, D, E{});
      store_columns(row, reinterpret_cast<float *>(panel + i * kBlockColumns), vectors * kBlockColumns);
    }
  }
}

// Values in panels of kBlockColumns of the head's, in each [count][kBlockColumns] of float, or half as many rows of
// pairs, where a missing second is 0. The last panel may be narrower, its rows are not.
template <class T>
void pack_values(const T *v, const int64_t *offsets, int count, int D, float *out) {
  for (int t = 0; t < count; ++t)
    for (int first = 0; first < D; first += kBlockColumns) {
      float *row = out + first * count + t * kBlockColumns;
      for (int d = first; d < D && d < first + kBlockColumns; d += W) store(row + d - first, load(v + offsets[t] + d));
    }
}

template <class T>
void pack_values(const T *v, const int64_t *offsets, int count, int D, Pair *out) {
  const int pairs = (count + 1) / 2;
  for (int t = 0; t < count; t += 2) {
    const T *low = v + offsets[t];
    const T *high = v + offsets[t + 1 < count ? t + 1 : t];
    const uint32_t keep = t + 1 < count ? 0xffff0000u : 0;
    for (int first = 0; first < D; first += kBlockColumns) {
      Pair *row = out + first * pairs + t / 2 * kBlockColumns;
      for (int d = first; d < D && d < first + kBlockColumns; ++d)
        row[d - first].bits = low[d].bits | ((uint32_t(high[d].bits) << 16) & keep);
    }
  }
}

// scores[m][n] = scale · q[m] · k[n] for kBlockRows queries and `vectors` ≤ NV vectors of a panel's keys; the rows of
// scores are kChunkTokens apart.
template <class E, int kD, int NV = kBlockVectors>
PW_INLINE void score_block(int vectors, const E *queries, const E *keys, int head_dim, float scale, float *scores) {
  if constexpr (NV > 1)
    if (vectors < NV) return score_block<E, kD, NV - 1>(vectors, queries, keys, head_dim, scale, scores);
  constexpr int kLevels = W == 16 ? 4 : W == 8 ? 3 : 2;
  const int steps = vectors_of<E>(kD ? kD : head_dim);
  vf waiting[kLevels + 1][kBlockRows][NV];  // sums of 1, 2, 4 … lanes, for as many that follow
  for (int lane = 0; lane < W; ++lane) {
    vf sum[kBlockRows][NV] = {};
    for (int i = 0; i < steps; ++i)
      for (int m = 0; m < kBlockRows; ++m)
        for (int n = 0; n < NV; ++n)
          sum[m][n] = multiply_add(sum[m][n], queries + (m * W + lane) * steps + i,
                                   vector_at(keys + (lane * steps + i) * kBlockColumns + n * W));
    int level = 0;
    for (; lane >> level & 1; ++level)
      for (int m = 0; m < kBlockRows; ++m)
        for (int n = 0; n < NV; ++n) sum[m][n] = waiting[level][m][n] + sum[m][n];
    for (int m = 0; m < kBlockRows; ++m)
      for (int n = 0; n < NV; ++n) waiting[level][m][n] = sum[m][n];
  }
  for (int m = 0; m < kBlockRows; ++m)
    for (int n = 0; n < NV; ++n) store(scores + m * kChunkTokens + n * W, waiting[kLevels][m][n] * scale);
}

// sums[m][n] += weights[m] · values[n], one of `depth` after the other, for kBlockRows rows and `vectors` ≤ NV vectors
// of a panel's columns.
template <class E, int NV = kBlockVectors>
PW_INLINE void weigh_block(int vectors, const E *weights, const E *values, int depth, float *sums, int stride) {
  if constexpr (NV > 1)
    if (vectors < NV) return weigh_block<E, NV - 1>(vectors, weights, values, depth, sums, stride);
  vf sum[kBlockRows][NV];
  for (int m = 0; m < kBlockRows; ++m)
    for (int n = 0; n < NV; ++n) sum[m][n] = load(sums + m * stride + n * W);
  for (int i = 0; i < depth; ++i)
    for (int m = 0; m < kBlockRows; ++m)
      for (int n = 0; n < NV; ++n)
        sum[m][n] = multiply_add(sum[m][n], weights + m * kChunkTokens + i,
                                 vector_at(values + i * kBlockColumns + n * W));
  for (int m = 0; m < kBlockRows; ++m)
    for (int n = 0; n < NV; ++n) store(sums + m * stride + n * W, sum[m][n]);
}

}  // namespace
