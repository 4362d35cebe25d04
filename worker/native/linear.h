// y = x · weightᵀ + bias for any number of rows, the weight packed for it once.
//
// A panel is kPanel columns of the result, all of K: for every k (every pair of k in bf16) the panel's values lie side
// by side, so that a panel is one stream of memory, read whole vectors at a time, and one load serves all rows of a
// tile. Few rows are bound by that stream; many rows by arithmetic, a panel then stays in the second-level cache while
// the tiles pass.
//
// Every element is summed over k in ascending order by itself, so a row's result depends neither on the other rows nor
// on threads.

#pragma once

#include "kernels.h"
#include "vec.h"

namespace {

using namespace pagewire;

constexpr int kPanel = 2 * W;
constexpr int kTileRows = W == 16 ? 12 : 6;  // two sums per row, two of the weight and one of x: the registers' limit

// Steps of k in one panel: pairs in bf16, the last one filled up with zero.
template <class T>
PW_INLINE int64_t k_steps(int64_t k) {
  return sizeof(T) == 2 ? (k + 1) / 2 : k;
}

template <class T>
struct Step;

template <>
struct Step<float> {
  typedef vf Weight;
  PW_INLINE static Weight weight(const float *p) { return load(p); }
  PW_INLINE static void add(vf *sum, const Weight *w, const float *x) {
    const vf value = splat(*x);
    sum[0] += value * w[0];
    sum[1] += value * w[1];
  }
};

template <>
struct Step<bf16> {
#if defined(__AVX512BF16__)
  typedef vu Weight;
  PW_INLINE static Weight from_bits(vu v) { return v; }
  PW_INLINE static void add(vf *sum, const Weight *w, const bf16 *x) {
    int32_t pair;
    std::memcpy(&pair, x, sizeof pair);
    const vu value = (vu)_mm512_set1_epi32(pair);
    for (int i = 0; i < 2; ++i) sum[i] = dot_pairs(sum[i], value, w[i]);
  }
#else
  struct Weight {
    vf even, odd;
  };
  PW_INLINE static Weight from_bits(vu v) { return {bits_to_float(v << 16), bits_to_float(v & 0xffff0000u)}; }
  PW_INLINE static void add(vf *sum, const Weight *w, const bf16 *x) {
    const vf even = splat(to_float(x[0])), odd = splat(to_float(x[1]));
    for (int i = 0; i < 2; ++i) {
      sum[i] += even * w[i].even;
      sum[i] += odd * w[i].odd;
    }
  }
#endif
  PW_INLINE static Weight weight(const bf16 *p) {
    vu v;
    std::memcpy(&v, p, sizeof v);
    return from_bits(v);
  }
};

// Columns [column, column + kPanel) of one row of the result, as far as there are that many, with the bias added.
template <class T, class Out>
PW_INLINE void store_columns(const LinearArgs *a, int64_t row, int64_t column, const vf *y) {
  const int64_t columns = a->n - column < kPanel ? a->n - column : kPanel;
  const T *bias = static_cast<const T *>(a->bias);
  Out *out = static_cast<Out *>(a->out) + row * a->n + column;
  if (columns == kPanel) {
    for (int i = 0; i < 2; ++i) store(out + i * W, bias ? y[i] + load(bias + column + i * W) : y[i]);
  } else {
    for (int64_t c = 0; c < columns; ++c) put(out + c, y[c / W][c % W] + (bias ? to_float(bias[column + c]) : 0.0f));
  }
}

template <class T>
PW_INLINE void store_result(const LinearArgs *a, int64_t row, int64_t column, const vf *y) {
  if (a->out_dtype == kFloat32)
    store_columns<T, float>(a, row, column, y);
  else
    store_columns<T, bf16>(a, row, column, y);
}

// Memory that a tile asks for while it computes, some lines of 64 bytes in every step until there are no more.
struct Ahead {
  const char *line;
  const char *end;
};

template <class T, int ROWS, bool ALONE>
PW_INLINE void linear_tile(const LinearArgs *a, int64_t row, const T *panel, int64_t column, Ahead ahead) {
  constexpr int kPer = sizeof(T) == 2 ? 2 : 1;  // values of x per step
  constexpr int kLines = ALONE ? kPanel * 4 / 64 : 1;
  const T *x[ROWS];
  for (int r = 0; r < ROWS; ++r) x[r] = static_cast<const T *>(a->x) + (row + r) * a->x_stride;
  vf sum[ROWS][2] = {};
  const int64_t whole = a->k / kPer;
  const T *w = panel;
  for (int64_t step = 0; step < whole; ++step, w += kPanel * kPer) {
    if (ahead.line < ahead.end) {
      for (int i = 0; i < kLines; ++i) __builtin_prefetch(ahead.line + i * 64, 0, ALONE ? 3 : 2);
      ahead.line += kLines * 64;
    }
    const typename Step<T>::Weight weight[2] = {Step<T>::weight(w), Step<T>::weight(w + W * kPer)};
    for (int r = 0; r < ROWS; ++r) Step<T>::add(sum[r], weight, x[r] + step * kPer);
  }
  if (kPer == 2 && a->k % 2) {
    const typename Step<T>::Weight weight[2] = {Step<T>::weight(w), Step<T>::weight(w + W * kPer)};
    for (int r = 0; r < ROWS; ++r) {
      const T last[2] = {x[r][a->k - 1], T{}};
      Step<T>::add(sum[r], weight, last);
    }
  }
  for (int r = 0; r < ROWS; ++r) store_result<T>(a, row + r, column, sum[r]);
}

// One panel and all rows, in tiles as equal as can be. The first tile meets the panel in the cache, because the tiles of
// the one before asked for it, each for its part; a single tile asks for what it will reach itself.
//
// A Kind has `args` (LinearArgs), panel_bytes() and tile<ROWS, ALONE>(row, panel, column, ahead), where ALONE means that
// the tile is its panel's only one.
template <class Kind, int ROWS>
void tile_panel(const Kind &kind, const char *panel, const char *next_panel, int64_t column, int64_t tiles) {
  constexpr int64_t kAheadBytes = 2048;
  const int64_t bytes = kind.panel_bytes();
  if (tiles == 1)
    return kind.template tile<ROWS, true>(0, panel, column, {panel + kAheadBytes, panel + kAheadBytes + bytes});
  const int64_t part = (bytes / 64 + tiles - 1) / tiles * 64;
  const int64_t shorter = ROWS * tiles - kind.args->num_rows;  // tiles of one row less, which come last
  int64_t row = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const char *next = next_panel + tile * part;
    if (tile < tiles - shorter) {
      kind.template tile<ROWS, false>(row, panel, column, {next, next + part});
      row += ROWS;
    } else if constexpr (ROWS > 1) {
      kind.template tile<ROWS - 1, false>(row, panel, column, {next, next + part});
      row += ROWS - 1;
    }
  }
}

template <class Kind, int ROWS>
void tile_panels(const Kind &kind, int64_t tiles, int64_t rows, int64_t first, int64_t end, int64_t next) {
  if constexpr (ROWS > 0) {
    if (rows != ROWS) return tile_panels<Kind, ROWS - 1>(kind, tiles, rows, first, end, next);
    const char *weight = static_cast<const char *>(kind.args->weight);
    const int64_t bytes = kind.panel_bytes();
    for (int64_t panel = first; panel < end; ++panel)
      tile_panel<Kind, ROWS>(kind, weight + panel * bytes, weight + (panel + 1 < end ? panel + 1 : next) * bytes,
                             panel * kPanel, tiles);
  }
}

// Panels [first, end) and all rows; `next` is the panel that this thread probably does then.
template <class Kind>
void run_panels(const Kind &kind, int64_t first, int64_t end, int64_t next) {
  const int64_t tiles = (kind.args->num_rows + kTileRows - 1) / kTileRows;
  const int64_t rows = (kind.args->num_rows + tiles - 1) / tiles;
  tile_panels<Kind, kTileRows>(kind, tiles, rows, first, end, next);
}

template <class T>
struct Plain {
  const LinearArgs *args;

  PW_INLINE int64_t panel_bytes() const { return k_steps<T>(args->k) * kPanel * 4; }

  template <int ROWS, bool ALONE>
  PW_INLINE void tile(int64_t row, const char *panel, int64_t column, Ahead ahead) const {
    linear_tile<T, ROWS, ALONE>(args, row, reinterpret_cast<const T *>(panel), column, ahead);
  }
};

// Columns [first panel, end panel) of a weight [n, k] into their place, a few steps of all columns after the other: they
// stay in the first-level cache while every column brings a line of its own.
template <class T>
void pack_panels(const T *weight, T *packed, int64_t n, int64_t k, int64_t first, int64_t end) {
  constexpr int kPer = sizeof(T) == 2 ? 2 : 1;
  constexpr int64_t kSteps = 64 / (kPer * sizeof(T));
  const int64_t steps = k_steps<T>(k);
  for (int64_t panel = first; panel < end; ++panel)
    for (int64_t begin = 0; begin < steps; begin += kSteps) {
      const int64_t stop = begin + kSteps < steps ? begin + kSteps : steps;
      for (int64_t c = 0; c < kPanel; ++c) {
        const int64_t column = panel * kPanel + c;
        const T *from = weight + column * k + begin * kPer;
        T *to = packed + (panel * steps + begin) * kPanel * kPer + c * kPer;
        if (column < n && stop * kPer <= k) {
          for (int64_t step = begin; step < stop; ++step, from += kPer, to += kPanel * kPer)
            std::memcpy(to, from, kPer * sizeof(T));
        } else {
          for (int64_t step = begin; step < stop; ++step, to += kPanel * kPer)
            for (int i = 0; i < kPer; ++i) {
              const int64_t at = step * kPer + i;
              to[i] = column < n && at < k ? weight[column * k + at] : T{};
            }
        }
      }
    }
}

// Row ids[i] of the weight [n, k], as it was before it was packed.
template <class T>
void unpack_rows(const int64_t *ids, const T *packed, T *out, int64_t k, int64_t first, int64_t end) {
  constexpr int kPer = sizeof(T) == 2 ? 2 : 1;
  for (int64_t i = first; i < end; ++i) {
    const T *from = packed + ids[i] / kPanel * k_steps<T>(k) * kPanel * kPer + ids[i] % kPanel * kPer;
    for (int64_t at = 0; at < k; ++at) out[i * k + at] = from[at / kPer * kPanel * kPer + at % kPer];
  }
}

void linear(const LinearArgs *a, int64_t first, int64_t end, int64_t next) {
  if (a->dtype == kBFloat16)
    run_panels(Plain<bf16>{a}, first, end, next);
  else
    run_panels(Plain<float>{a}, first, end, next);
}

void pack(const void *weight, void *packed, int64_t n, int64_t k, int32_t dtype, int64_t first, int64_t end) {
  if (dtype == kBFloat16)
    pack_panels(static_cast<const bf16 *>(weight), static_cast<bf16 *>(packed), n, k, first, end);
  else
    pack_panels(static_cast<const float *>(weight), static_cast<float *>(packed), n, k, first, end);
}

void unpack(const int64_t *ids, const void *packed, void *out, int64_t k, int32_t dtype, int64_t first, int64_t end) {
  if (dtype == kBFloat16)
    unpack_rows(ids, static_cast<const bf16 *>(packed), static_cast<bf16 *>(out), k, first, end);
  else
    unpack_rows(ids, static_cast<const float *>(packed), static_cast<float *>(out), k, first, end);
}

}  // namespace
