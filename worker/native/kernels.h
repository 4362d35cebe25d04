// What the library's translation units share: plain structures, and the table of kernels that each instruction set
// fills in. No inline functions: a function that two units compile with different instructions would be merged into
// one of them by the linker.
//
// Shapes as in pagewire.worker.attention.base. All matrices are row-major; strides count elements.

#pragma once

#include <cstdint>

namespace pagewire {

enum DType : int32_t { kFloat32 = 0, kBFloat16 = 1 };

constexpr int kMaxHeadDim = 256;
constexpr int kHeadDimMultiple = 16;
constexpr int kChunkTokens = 256;   // of one sequence's context per decode task; fixed, so that a sequence's result
                                    // depends neither on its company nor on the number of threads
constexpr int kTileQueries = 128;   // query vectors per prefill task
constexpr int kTileTokens = 64;     // keys a prefill task looks at together
constexpr int kRotation = 64;       // values of a row that are rotated together before they become int8
constexpr int64_t kMaxInt8K = 65536;  // int8 sums over more could pass 32 bits; a multiple of kRotation
constexpr int kSumBlock = 128;      // logits per partial maximum and sum

// One piece of an attention step, done once per KV head.
struct AttentionItem {
  int32_t seq;
  int32_t is_prefill;
  int32_t first;    // prefill: first row of the piece within the sequence's rows. decode: index of the chunk
  int32_t count;    // prefill: rows. decode: chunks of the sequence
  int32_t partial;  // decode with count > 1: first of the sequence's partial results
};

// A step's attention in items, the same for all layers.
struct AttentionPlan {
  AttentionItem *items;
  int64_t num_items;
  int64_t num_partials;
  int64_t tokens_read;  // tokens whose keys and values are read in a layer, counted anew for every row that reads them
};

struct AttentionArgs {
  const void *q;  // [T, H, D], rows q_stride apart
  void *out;      // [T, H, D] contiguous
  const void *k;  // [N, K, P, D]
  const void *v;
  const int32_t *block_tables;  // [B, M]
  const int32_t *query_starts;  // [B + 1]
  const int32_t *context_lens;  // [B]
  const AttentionPlan *plan;
  float *partials;    // [partials, K, G, D + 2]: weighted values, largest score, sum of weights
  int32_t *arrivals;  // [partials, K], zero between calls
  int64_t q_stride;
  int64_t table_stride;
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t head_dim;
  int32_t block_size;
  int32_t dtype;
  float scale;
};

struct RotateArgs {
  void *qkv;  // [T, H + 2K, D], rows qkv_stride apart; q is changed in place
  void *k;    // [N, K, P, D]
  void *v;
  const float *qk_norm;         // [H + K, D], already times sqrt(D); null where heads are not normalized
  const float *cos_sin;         // [positions, D]: D / 2 cosines, then as many sines
  const int64_t *positions;     // [T]
  const int64_t *kv_positions;  // [T]: block × P + offset, or -1 where nothing is written
  int64_t qkv_stride;
  int64_t num_rows;
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t head_dim;
  int32_t block_size;
  int32_t dtype;
  float norm_floor;  // D × eps
};

struct NormArgs {
  float *x;             // [num_rows, E]; the sum of the layers
  const void *delta;    // [num_rows, E] in dtype, added to x first; may be null
  const float *weight;  // [E], already times sqrt(E)
  void *out;            // [num_rows, E] in dtype
  int64_t num_rows;
  int64_t width;
  int32_t dtype;
  float norm_floor;  // E × eps
};

struct SiluMulArgs {
  const void *gate_up;  // [num_rows, 2 * width] in dtype
  void *out;            // [num_rows, width] in dtype
  int64_t num_rows;
  int64_t width;
  int32_t dtype;
};

struct LinearArgs {
  const void *x;       // [num_rows, k] in dtype, rows x_stride apart
  const void *weight;  // packed
  const void *bias;    // [n] in dtype, or null
  void *out;           // [num_rows, n] in out_dtype, contiguous
  int64_t x_stride;
  int64_t num_rows;
  int64_t k;
  int64_t n;
  int32_t dtype;
  int32_t out_dtype;  // dtype, or kFloat32
};

struct Int8LinearArgs {
  LinearArgs linear;  // the weight as linear_int8.h packs it
  void *rows;         // num_rows × int8_row_bytes(k), for x as it is quantized
};

// Rows of logits, of which each has maxima and sums by blocks of kSumBlock ids.
struct LogitsRow {
  const void *logits;
  int64_t vocab;
  int32_t dtype;
};

struct Kernels {
  const char *name;
  // Tasks [first, end), of which each is a KV head of an item: task / num_kv_heads is the item.
  void (*attend)(const AttentionArgs *args, int64_t first, int64_t end);
  void (*rotate_and_store)(const RotateArgs *args, int64_t first, int64_t end);
  void (*norm)(const NormArgs *args, int64_t first, int64_t end);
  void (*silu_mul)(const SiluMulArgs *args, int64_t first, int64_t end);
  int64_t panel;  // columns of a linear's result that are packed together, in any dtype
  // Panels [first, end) of the result; `next` is the one that this thread will probably do then.
  void (*linear)(const LinearArgs *args, int64_t first, int64_t end, int64_t next);
  // Panels [first, end) of a weight [n, k].
  void (*pack)(const void *weight, void *packed, int64_t n, int64_t k, int32_t dtype, int64_t first, int64_t end);
  // Rows ids[first … end) of the weight that was packed.
  void (*unpack)(const int64_t *ids, const void *packed, void *out, int64_t k, int32_t dtype, int64_t first,
                 int64_t end);
  // The same for bf16 in 12 bits (linear_compact.h); null where this instruction set does not gain by it.
  bool (*compactable)(const void *weight, int64_t n, int64_t k);
  int64_t (*compact_panel_bytes)(int64_t k);
  // All panels of a weight that is compactable; `plain` has room for one panel as `pack` makes it.
  void (*pack_compact)(const void *weight, void *packed, void *plain, int64_t n, int64_t k);
  void (*unpack_compact)(const int64_t *ids, const void *packed, void *out, int64_t k, int64_t first, int64_t end);
  // `expanded` has room for one panel as `pack` makes it, and is this thread's.
  void (*linear_compact)(const LinearArgs *args, void *expanded, int64_t first, int64_t end, int64_t next);
  // Memory of one panel, and of one quantized row of x.
  int64_t (*int8_panel_bytes)(int64_t k);
  int64_t (*int8_row_bytes)(int64_t k);
  // Rows [first, end) of x.
  void (*quantize_rows)(const Int8LinearArgs *args, int64_t first, int64_t end);
  // Panels [first, end) of the result, once all rows are quantized.
  void (*linear_int8)(const Int8LinearArgs *args, int64_t first, int64_t end, int64_t next);
  // Panels [first, end) of a weight [n, k].
  void (*pack_int8)(const void *weight, void *packed, int64_t n, int64_t k, int32_t dtype, int64_t first, int64_t end);
  // Block maxima; returns the largest logit, NaN where the row has one.
  float (*row_maxima)(const LogitsRow *row, float *maxima);
  // weights[i] = exp((logit - largest) / temperature) for ids of one block range; sums by blocks.
  void (*row_weights)(const LogitsRow *row, float largest, float temperature, float *weights, float *sums);
  // Ids in [first, end) whose value is at least `bound`, ascending; returns how many.
  int64_t (*at_least)(const float *values, int64_t first, int64_t end, float bound, int32_t *ids);
  void (*widen)(const LogitsRow *row, int64_t first, int64_t end, float *out);
};

}  // namespace pagewire
