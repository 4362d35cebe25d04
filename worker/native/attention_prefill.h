// Attention of several rows of a prompt: a task is one KV head and a tile of rows
//
// The query vectors of a tile share each read of keys and values. Yet every row comes to the bits of the same row when
// it decodes (attention_decode.h): the context in the same chunks, in each the products of q and k with the same sums,
// weights relative to the chunk's largest score, values added token after token. So a sequence that is computed again,
// after a preemption, a crash or from another's cached blocks, goes on as it would have. What a row does not see has the
// weight 0, and adding that changes no bit.

#pragma once

#include <type_traits>

#include "attention_decode.h"
#include "kernels.h"
#include "vec.h"

namespace {

using namespace pagewire;

PW_INLINE vf multiply_add(vf sum, const float *weight, vf value) { return sum + splat(*weight) * value; }
PW_INLINE vf values_at(const float *values) { return load(values); }

#if defined(__AVX512BF16__)
PW_INLINE vf multiply_add(vf sum, const Pair *weights, vu values) { return dot_pairs(sum, pair_of(weights), values); }

PW_INLINE vu values_at(const Pair *values) {
  vu pairs;
  std::memcpy(&pairs, values, sizeof pairs);
  return pairs;
}
#endif

template <class E, int MR, int NV>
PW_INLINE void multiply_block(const E *A, int a_stride, const E *B, int b_stride, float *C, int c_stride, int depth) {
  vf sum[MR][NV];
  for (int m = 0; m < MR; ++m)
    for (int n = 0; n < NV; ++n) sum[m][n] = load(C + m * c_stride + n * W);
  for (int k = 0; k < depth; ++k)
    for (int m = 0; m < MR; ++m)
      for (int n = 0; n < NV; ++n)
        sum[m][n] = multiply_add(sum[m][n], A + m * a_stride + k, values_at(B + k * b_stride + n * W));
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

// C[rows][columns] += A · B, one k after the other; columns is a multiple of W.
template <class E>
void multiply(const E *A, int a_stride, const E *B, int b_stride, float *C, int c_stride, int rows, int columns,
              int depth) {
  constexpr int NV = W == 16 ? 4 : 2;
  int n = 0;
  for (; n + NV * W <= columns; n += NV * W)
    multiply_columns<E, NV>(A, a_stride, B + n, b_stride, C + n, c_stride, rows, depth);
  for (; n < columns; n += W) multiply_columns<E, 1>(A, a_stride, B + n, b_stride, C + n, c_stride, rows, depth);
}

template <class E>
constexpr int tokens_in() {
  return std::is_same<E, Pair>::value ? 2 : 1;
}

// V as it is multiplied: [count][D] of float, or [count / 2][D] of pairs, where a missing second is 0. Returns how many
// rows that makes.
template <class T>
int pack_values(const T *v, const int64_t *offsets, int count, int D, float *out) {
  for (int t = 0; t < count; ++t) widen_row(v + offsets[t], D, out + t * D);
  return count;
}

template <class T>
int pack_values(const T *v, const int64_t *offsets, int count, int D, Pair *out) {
  for (int t = 0; t < count; t += 2) {
    const T *low = v + offsets[t];
    const T *high = v + offsets[t + 1 < count ? t + 1 : t];
    const uint32_t keep = t + 1 < count ? 0xffff0000u : 0;
    for (int d = 0; d < D; ++d) out[t / 2 * D + d].bits = low[d].bits | ((uint32_t(high[d].bits) << 16) & keep);
  }
  return (count + 1) / 2;
}

// One tile: `num_queries` vectors of one KV head, row after row, `heads` of a row; row 0 sees `visible` tokens and each
// row one more than that before it.
template <class Q, class E>
struct Tile {
  int num_queries, heads, visible;
  alignas(64) Q queries[kTileQueries * kMaxHeadDim];
  alignas(64) float scores[kTileQueries * kChunkTokens];  // of a chunk; then its weights, as E
  alignas(64) Q keys[kTileTokens * kMaxHeadDim];          // where they are not of Q in the cache
  alignas(64) E values[kTileTokens * kMaxHeadDim];
  alignas(64) float part[kTileQueries * kMaxHeadDim];     // of a chunk
  alignas(64) float sum[kTileQueries * kMaxHeadDim];
  float largest[kTileQueries], total[kTileQueries];

  int seen_by(int query) const { return visible + query / heads; }
};

constexpr int kSharedQueries = W == 16 ? 6 : 2;  // that share a load of keys; the registers' limit

// Scores of tokens [first, end) of a chunk that begins at token `chunk_first`, for queries from `from` on.
template <class T, class Q, class E>
void score_piece(Tile<Q, E> *tile, const Chunk<T> &chunk, int chunk_first, int first, int end, int from, int D,
                 float scale) {
  int64_t offsets[kTileTokens];
  const Q *k;
  if constexpr (sizeof(Q) == sizeof(T)) {
    k = chunk.k;
    for (int t = first; t < end; ++t) offsets[t - first] = chunk.offsets[t];
  } else {
    for (int t = first; t < end; ++t) widen_row(chunk.k + chunk.offsets[t], D, tile->keys + (t - first) * D);
    for (int t = first; t < end; ++t) offsets[t - first] = int64_t(t - first) * D;
    k = tile->keys;
  }
  for (int i = from; i < tile->num_queries;) {
    const int queries = tile->num_queries - i;
    const int taken = queries >= kSharedQueries ? kSharedQueries : queries >= 2 ? 2 : 1;
    const int left = tile->seen_by(i + taken - 1) - chunk_first;
    const int count = (left < end ? left : end) - first;
    const Q *q = tile->queries + i * D;
    float *scores = tile->scores + i * kChunkTokens + first;
    if (count > 0 && taken == 1)
      score<Q, Q, 1>(q, k, offsets, count, nullptr, D, scale, scores);
    else if (count > 0 && taken == 2)
      score<Q, Q, 2>(q, k, offsets, count, nullptr, D, scale, scores);
    else if (count > 0)
      score<Q, Q, kSharedQueries>(q, k, offsets, count, nullptr, D, scale, scores);
    i += taken;
  }
}

template <class T, class Q, class E>
void prefill_chunk(Tile<Q, E> *tile, const Chunk<T> &chunk, int first, int D, float scale) {
  int from = 0;  // the first query that sees any of it
  while (tile->seen_by(from) <= first) from += tile->heads;
  for (int t = 0; t < chunk.count; t += kTileTokens) {
    const int end = t + kTileTokens < chunk.count ? t + kTileTokens : chunk.count;
    score_piece(tile, chunk, first, t, end, from, D, scale);
  }
  float largest[kTileQueries], total[kTileQueries];
  for (int i = from; i < tile->num_queries; ++i) {
    float *scores = tile->scores + i * kChunkTokens;
    const int left = tile->seen_by(i) - first;
    const int count = left < chunk.count ? left : chunk.count;
    to_weights<E>(scores, count, chunk.count, largest + i, total + i);
  }
  const int rows = tile->num_queries - from;
  std::memset(tile->part + from * D, 0, sizeof(float) * rows * D);
  for (int t = 0; t < chunk.count; t += kTileTokens) {
    const int count = chunk.count - t < kTileTokens ? chunk.count - t : kTileTokens;
    const int depth = pack_values(chunk.v, chunk.offsets + t, count, D, tile->values);
    const E *weights = reinterpret_cast<const E *>(tile->scores + from * kChunkTokens) + t / tokens_in<E>();
    multiply(weights, kChunkTokens, tile->values, D, tile->part + from * D, D, rows, D, depth);
  }
  for (int i = from; i < tile->num_queries; ++i)
    merge(tile->part + i * D, largest[i], total[i], D, tile->sum + i * D, tile->largest + i, tile->total + i);
}

// `rows` rows of one sequence, `heads` of the query heads of one KV head: rows × heads ≤ kTileQueries vectors.
template <class T, class Q, class E>
void prefill_tile(const AttentionArgs *a, int seq, int first_row, int rows, int kv_head, int first_head, int heads) {
  const int D = a->head_dim;
  const int start = a->query_starts[seq];
  const int past = a->context_lens[seq] - (a->query_starts[seq + 1] - start);
  const int seen = past + first_row + rows;  // by the tile's last row
  const T *q = static_cast<const T *>(a->q) + (start + first_row) * a->q_stride + int64_t(first_head) * D;

  Tile<Q, E> tile;
  tile.num_queries = rows * heads;
  tile.heads = heads;
  tile.visible = past + first_row + 1;
  for (int i = 0; i < tile.num_queries; ++i) {
    const T *source = q + (i / heads) * a->q_stride + int64_t(i % heads) * D;
    if constexpr (sizeof(Q) == sizeof(T))
      std::memcpy(tile.queries + i * D, source, sizeof(T) * D);
    else
      widen_row(source, D, tile.queries + i * D);
    tile.largest[i] = kNegInf;
    tile.total[i] = 0;
  }
  std::memset(tile.sum, 0, sizeof(float) * tile.num_queries * D);

  Chunk<T> chunk;
  chunk.k = static_cast<const T *>(a->k);
  chunk.v = static_cast<const T *>(a->v);
  for (int first = 0; first < seen; first += kChunkTokens) {
    chunk.count = seen - first < kChunkTokens ? seen - first : kChunkTokens;
    token_offsets(a, seq, kv_head, first, chunk.count, chunk.offsets);
    prefill_chunk(&tile, chunk, first, D, a->scale);
  }
  for (int i = 0; i < tile.num_queries; ++i) {
    const int64_t row = start + first_row + i / heads;
    T *target = static_cast<T *>(a->out) + (row * a->num_heads + first_head + i % heads) * D;
    put_result(tile.sum + i * D, tile.total[i], D, target);
  }
}

template <class T, class Q, class E>
void prefill_piece(const AttentionArgs *a, const AttentionItem *item, int kv_head) {
  const int G = a->num_heads / a->num_kv_heads;
  const int heads = G < kTileQueries ? G : kTileQueries;
  for (int g = 0; g < G; g += heads) {
    const int taken = G - g < heads ? G - g : heads;
    prefill_tile<T, Q, E>(a, item->seq, item->first, item->count, kv_head, kv_head * G + g, taken);
  }
}

}  // namespace
