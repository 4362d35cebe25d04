// Attention over blocks, in place: one task is one KV head and either a chunk of one token's context (decode) or a
// tile of a prompt's rows (prefill). Products of bf16 pairs where the instruction set has them; sums are always fp32.

#pragma once

#include "kernels.h"
#include "vec.h"

namespace {

using namespace pagewire;

constexpr int kMaxGroup = W == 16 ? 4 : 2;  // query heads that share a load of K and V; the registers' limit
constexpr float kNegInf = -__builtin_inff();

// Where a sequence's tokens lie in a layer: offsets of their D values for one KV head.
PW_INLINE void token_offsets(const AttentionArgs *a, int seq, int kv_head, int first, int count, int64_t *offsets) {
  const int32_t *table = a->block_tables + seq * a->table_stride;
  const int P = a->block_size;
  int block = first / P, slot = first % P;
  for (int i = 0; i < count;) {
    const int64_t base = (int64_t(table[block]) * a->num_kv_heads + kv_head) * P;
    for (; slot < P && i < count; ++slot, ++i) offsets[i] = (base + slot) * a->head_dim;
    slot = 0;
    ++block;
  }
}

#if defined(__AVX512BF16__)
PW_INLINE vf dot_pairs(vf sum, vu a, vu b) { return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b); }
#endif

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

// ---- prefill ----------------------------------------------------------------------------------------------------
//
// Both products of a tile run on one microkernel: C[MR][NV · W] += A[MR][depth] · B[depth][NV · W], where an element
// of A and B is a float, or a pair of bf16 that the instruction set multiplies and adds at once.

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

template <class T, class Q, class E>
void attend_run(const AttentionArgs *a, int64_t first, int64_t end) {
  Chunk<T> chunks[2];
  const int K = a->num_kv_heads;
  bool found = false;  // chunks[task % 2] is this task's already
  for (int64_t task = first; task < end; ++task) {
    const AttentionItem *item = a->items + task / K;
    const int head = int(task % K);
    if (item->is_prefill) {
      prefill_piece<T, E>(a, item, head);
      continue;
    }
    if (!found) find_chunk(a, item, head, &chunks[task % 2]);
    found = task + 1 < end;  // decoding comes last
    if (found) find_chunk(a, a->items + (task + 1) / K, int((task + 1) % K), &chunks[(task + 1) % 2]);
    decode_chunk<T, Q>(a, item, head, chunks[task % 2], found ? &chunks[(task + 1) % 2] : nullptr);
    if (item->count == 1) continue;
    // Whoever brings the last chunk puts all of them together: no second round of waiting.
    int32_t *arrivals = a->arrivals + int64_t(item->partial) * K + head;
    if (__atomic_add_fetch(arrivals, 1, __ATOMIC_ACQ_REL) < item->count) continue;
    *arrivals = 0;
    merge_chunks<T>(a, item, head);
  }
}

void attend(const AttentionArgs *a, int64_t first, int64_t end) {
#if defined(__AVX512BF16__)
  using Query = bf16;
  using Element = Pair;
#else
  using Query = float;
  using Element = float;
#endif
  if (a->dtype == kBFloat16)
    attend_run<bf16, Query, Element>(a, first, end);
  else
    attend_run<float, float, float>(a, first, end);
}

}  // namespace
