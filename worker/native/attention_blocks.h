// Where a sequence's keys and values lie.

#pragma once

#include "kernels.h"
#include "vec.h"

namespace {

using namespace pagewire;

constexpr float kNegInf = -__builtin_inff();

// Where a sequence's tokens lie in a layer: offsets of their D values for one KV head.
PW_INLINE void token_offsets(const AttentionArgs *a, int seq, int kv_head, int first, int count, int64_t *offsets) {
  const int32_t *table = a->block_tables + seq * a->table_stride;
  const int P = a->block_size;
  int block = first / P, offset = first % P;
  for (int i = 0; i < count;) {
    const int64_t base = (int64_t(table[block]) * a->num_kv_heads + kv_head) * P;
    for (; offset < P && i < count; ++offset, ++i) offsets[i] = (base + offset) * a->head_dim;
    offset = 0;
    ++block;
  }
}

}  // namespace
