// Attention of several rows of a prompt: a task is one KV head and a tile of rows
//
// The query vectors of a tile share each read of keys and values. Yet every row comes to the bits of the same row when
// it decodes (attention_decode.h): the context in the same chunks, in each the products of q and k added up in the same
// order (attention_products.h), weights relative to the chunk's largest score, values added token after token. So a
// sequence that is computed again, after a preemption, a crash or from another's cached blocks, goes on as it would have.
// What a row does not see has the weight 0, and adding that changes no bit.

#pragma once

#include "attention_decode.h"
#include "attention_products.h"
#include "kernels.h"
#include "vec.h"

namespace {

using namespace pagewire;

// One tile: `num_queries` vectors of one KV head, row after row, `heads` of a row; row 0 sees `visible` tokens and each
// row one more than that before it. Blocks may reach past the last query; what they make there is not looked at.
template <class E>
struct Tile {
  int num_queries, heads, visible;
  alignas(64) E queries[kPaddedQueries * kMaxHeadDim];             // packed
  alignas(64) float scores[kPaddedQueries * kChunkTokens];         // of a chunk; then its weights, as E
  alignas(64) E packed[kTileTokens * kMaxHeadDim];                 // keys, then values
  alignas(64) float part[kPaddedQueries * kMaxHeadDim];            // of a chunk
  alignas(64) float sum[kTileQueries * kMaxHeadDim];
  float largest[kTileQueries], total[kTileQueries];

  // Tokens that the queries of the block from this one on see.
  int seen_by_block(int query) const {
    const int last = query + kBlockRows < num_queries ? query + kBlockRows - 1 : num_queries - 1;
    return seen_by(last);
  }
  int seen_by(int query) const { return visible + query / heads; }
};

// Scores of `count` keys from token `first` on, which have been packed, for queries from `from` on.
template <class E, int kD>
void score_tile(Tile<E> *tile, int first, int count, int from, int head_dim, float scale, float *scores) {
  const int D = kD ? kD : head_dim;
  const int depth = vectors_of<E>(D) * W;
  for (int t = 0; t < count; t += kBlockColumns) {
    const int columns = count - t < kBlockColumns ? count - t : kBlockColumns;
    for (int i = from; i < tile->num_queries; i += kBlockRows) {
      const int seen = tile->seen_by_block(i) - first - t;
      if (seen <= 0) continue;
      const int vectors = ((seen < columns ? seen : columns) + W - 1) / W;
      score_block<E, kD>(vectors, tile->queries + i * depth, tile->packed + t * depth, D, scale,
                         scores + i * kChunkTokens + t);
    }
  }
}

// Adds to each query's part the values of `count` tokens from `first` on, which have been packed.
template <class E>
void weigh_tile(Tile<E> *tile, int first, int count, int from, int D, const E *weights) {
  const int rows = (count + values_in<E>() - 1) / values_in<E>();
  for (int d = 0; d < D; d += kBlockColumns) {
    const int vectors = (D - d < kBlockColumns ? D - d : kBlockColumns) / W;
    for (int i = from; i < tile->num_queries; i += kBlockRows) {
      const int seen = tile->seen_by_block(i) - first;
      if (seen <= 0) continue;
      const int depth = seen < count ? (seen + values_in<E>() - 1) / values_in<E>() : rows;
      weigh_block<E>(vectors, weights + i * kChunkTokens, tile->packed + d * rows, depth, tile->part + i * D + d, D);
    }
  }
}

template <class T, class E>
void prefill_chunk(Tile<E> *tile, const Chunk<T> &chunk, int first, int D, float scale) {
  int from = 0;  // the first query that sees any of it
  while (tile->seen_by(from) <= first) from += tile->heads;
  for (int t = 0; t < chunk.count; t += kTileTokens) {
    const int count = chunk.count - t < kTileTokens ? chunk.count - t : kTileTokens;
    pack_keys(chunk.k, chunk.offsets + t, count, D, tile->packed);
    float *scores = tile->scores + t;
    switch (D) {  // the usual lengths of a head are constants
      case 128: score_tile<E, 128>(tile, first + t, count, from, D, scale, scores); break;
      case 64: score_tile<E, 64>(tile, first + t, count, from, D, scale, scores); break;
      default: score_tile<E, 0>(tile, first + t, count, from, D, scale, scores);
    }
  }
  float largest[kTileQueries], total[kTileQueries];
  for (int i = from; i < tile->num_queries; ++i) {
    const int left = tile->seen_by(i) - first;
    const int count = left < chunk.count ? left : chunk.count;
    to_weights<E>(tile->scores + i * kChunkTokens, count, chunk.count, largest + i, total + i);
  }
  std::memset(tile->part + from * D, 0, sizeof(float) * (tile->num_queries - from) * D);
  for (int t = 0; t < chunk.count; t += kTileTokens) {
    const int count = chunk.count - t < kTileTokens ? chunk.count - t : kTileTokens;
    pack_values(chunk.v, chunk.offsets + t, count, D, tile->packed);
    weigh_tile(tile, first + t, count, from, D, reinterpret_cast<const E *>(tile->scores) + t / values_in<E>());
  }
  for (int i = from; i < tile->num_queries; ++i)
    merge(tile->part + i * D, largest[i], total[i], D, tile->sum + i * D, tile->largest + i, tile->total + i);
}

// `rows` rows of one sequence, `heads` of the query heads of one KV head: rows × heads ≤ kTileQueries vectors.
template <class T, class E>
void prefill_tile(const AttentionArgs *a, int seq, int first_row, int rows, int kv_head, int first_head, int heads) {
  const int D = a->head_dim;
  const int start = a->query_starts[seq];
  const int past = a->context_lens[seq] - (a->query_starts[seq + 1] - start);
  const int seen = past + first_row + rows;  // by the tile's last row
  const T *q = static_cast<const T *>(a->q) + (start + first_row) * a->q_stride + int64_t(first_head) * D;

  Tile<E> tile;
  tile.num_queries = rows * heads;
  tile.heads = heads;
  tile.visible = past + first_row + 1;
  const int depth = vectors_of<E>(D) * W;
  std::memset(tile.queries + tile.num_queries * depth, 0, sizeof(E) * (kBlockRows - 1) * depth);
  std::memset(tile.scores + tile.num_queries * kChunkTokens, 0, sizeof(float) * (kBlockRows - 1) * kChunkTokens);
  std::memset(tile.part + tile.num_queries * D, 0, sizeof(float) * (kBlockRows - 1) * D);
  for (int i = 0; i < tile.num_queries; ++i) {
    pack_query(q + (i / heads) * a->q_stride + int64_t(i % heads) * D, D, tile.queries + i * depth);
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
