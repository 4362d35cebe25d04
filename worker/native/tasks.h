// The chosen kernels, over the pool's threads. What each computes stands in kernels.h.

#pragma once

#include <cstdint>

#include "kernels.h"

namespace pagewire {

// Splits a step's attention into items, written to plan->items: room for one per row, and one per kChunkTokens of every
// context. The rest of the plan is set.
void plan_attention(const int32_t *query_starts, const int32_t *context_lens, int32_t num_seqs, int32_t group,
                    AttentionPlan *plan);

void attend(const AttentionArgs *args);
void rotate_and_store(const RotateArgs *args);
void norm(const NormArgs *args);
void silu_mul(const SiluMulArgs *args);
void linear(const LinearArgs *args);
void linear_compact(const LinearArgs *args);
void linear_int8(const Int8LinearArgs *args);

// Rows ids[…] of the weight that was packed: plain, or compact.
void unpack_rows(const int64_t *ids, int64_t num_ids, const void *packed, void *out, int64_t k, int32_t dtype);
void unpack_compact_rows(const int64_t *ids, int64_t num_ids, const void *packed, void *out, int64_t k);

// Panels of a linear's result, and memory of its weight, packed.
int64_t panels_of(int64_t n);
int64_t panel_bytes(int64_t k, int32_t dtype);
int64_t packed_bytes(int64_t n, int64_t k, int32_t dtype);
int64_t compact_bytes(int64_t n, int64_t k);
int64_t int8_packed_bytes(int64_t n, int64_t k);

// Memory of the calling thread, from the start of a cache line on, of no particular content; until its next call.
void *scratch(int64_t bytes);

}  // namespace pagewire
