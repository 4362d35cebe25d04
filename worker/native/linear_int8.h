// y = x · weightᵀ + bias in int8: the weight symmetric per column of the result, x symmetric per row, both rotated
// (quantize.h). Tiles and panels are those of linear.h.
//
// A packed panel: for every four k its columns' four values side by side, all of them as value + 128, then the columns'
// scales as floats. The instruction that multiplies four pairs and adds them up wants one side unsigned; what the 128 add
// too much is 128 times the sum of x, and is subtracted at the end.
//
// Sums are exact integers, so that a result depends neither on the other rows nor on threads, and on the instruction set
// only in the last bit of its scaling.

#pragma once

#include "kernels.h"
#include "linear.h"
#include "quantize.h"
#include "vec.h"

namespace {

using namespace pagewire;

int64_t int8_panel_bytes(int64_t k) { return kPanel * (rotated_k(k) + int64_t(sizeof(float))); }

template <class T>
void pack_int8_panels(const T *weight, uint8_t *packed, int64_t n, int64_t k, int64_t first, int64_t end) {
  alignas(64) float rotated[kMaxInt8K];
  for (int64_t panel = first; panel < end; ++panel) {
    uint8_t *values = packed + panel * int8_panel_bytes(k);
    float *scales = reinterpret_cast<float *>(values + kPanel * rotated_k(k));
    for (int64_t c = 0; c < kPanel; ++c) {
      const int64_t column = panel * kPanel + c;
      float largest = 0, factor = 0;
      if (column < n) {
        largest = rotate_row(weight + column * k, k, rotated);
        factor = steps_per_unit(largest);
      } else {
        std::memset(rotated, 0, rotated_k(k) * sizeof(float));
      }
      scales[c] = largest * (1.0f / (127.0f * kRotation));
      for (int64_t at = 0; at < rotated_k(k); at += W) {
        const vi value = to_integer(load(rotated + at) * factor) + 128;
        for (int i = 0; i < W; i += 4) {
          uint8_t *to = values + ((at + i) * kPanel + 4 * c);
          for (int j = 0; j < 4; ++j) to[j] = uint8_t(value[i + j]);
        }
      }
    }
  }
}

#if defined(__AVX512VNNI__)

struct Four {  // W columns of the weight, four k each
  __m512i values;
  PW_INLINE explicit Four(const uint8_t *p) : values(_mm512_loadu_si512(p)) {}
  PW_INLINE vi add(vi sum, int32_t x) const {
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, values, _mm512_set1_epi32(x));
  }
};

#elif defined(__AVX2__)

// Without that instruction: even and odd values as pairs of 16 bits. The one that multiplies bytes saturates.
struct Four {
#if defined(__AVX512F__)
  typedef __m512i reg;
  PW_INLINE static reg multiply(reg a, reg b) { return _mm512_madd_epi16(a, b); }
  PW_INLINE static reg left(reg a) { return _mm512_slli_epi16(a, 8); }
  PW_INLINE static reg right(reg a) { return _mm512_srli_epi16(a, 8); }
  PW_INLINE static reg right_signed(reg a) { return _mm512_srai_epi16(a, 8); }
  PW_INLINE static reg splat32(int32_t x) { return _mm512_set1_epi32(x); }
#else
  typedef __m256i reg;
  PW_INLINE static reg multiply(reg a, reg b) { return _mm256_madd_epi16(a, b); }
  PW_INLINE static reg left(reg a) { return _mm256_slli_epi16(a, 8); }
  PW_INLINE static reg right(reg a) { return _mm256_srli_epi16(a, 8); }
  PW_INLINE static reg right_signed(reg a) { return _mm256_srai_epi16(a, 8); }
  PW_INLINE static reg splat32(int32_t x) { return _mm256_set1_epi32(x); }
#endif
  reg even, odd;
  PW_INLINE explicit Four(const uint8_t *p) {
    reg values;
    std::memcpy(&values, p, sizeof values);
    even = right(left(values));
    odd = right(values);
  }
  PW_INLINE vi add(vi sum, int32_t x) const {
    const reg all = splat32(x);
    return sum + (vi)multiply(even, right_signed(left(all))) + (vi)multiply(odd, right_signed(all));
  }
};

#else

struct Four {
  vi byte[4];
  PW_INLINE explicit Four(const uint8_t *p) {
    vu values;
    std::memcpy(&values, p, sizeof values);
    for (int j = 0; j < 4; ++j) byte[j] = (vi)(values >> (8 * j) & 0xff);
  }
  PW_INLINE vi add(vi sum, int32_t x) const {
    for (int j = 0; j < 4; ++j) sum += byte[j] * int32_t(int8_t(uint32_t(x) >> (8 * j)));
    return sum;
  }
};

#endif

template <class T, int ROWS, bool ALONE>
PW_INLINE void int8_tile(const Int8LinearArgs *args, int64_t row, const uint8_t *panel, int64_t column, Ahead ahead) {
  constexpr int kLines = ALONE ? kPanel * 4 / 64 : 1;
  const LinearArgs *a = &args->linear;
  const int64_t depth = rotated_k(a->k);
  int8_t *rows = static_cast<int8_t *>(args->rows) + row * int8_row_bytes(a->k);
  const int8_t *x[ROWS];
  for (int r = 0; r < ROWS; ++r) x[r] = rows + r * int8_row_bytes(a->k);
  vi sum[ROWS][2] = {};
  const uint8_t *w = panel;
  for (int64_t at = 0; at < depth; at += 4, w += 4 * kPanel) {
    if (ahead.line < ahead.end) {
      for (int i = 0; i < kLines; ++i) __builtin_prefetch(ahead.line + i * 64, 0, ALONE ? 3 : 2);
      ahead.line += kLines * 64;
    }
    const Four weight[2] = {Four(w), Four(w + 4 * W)};
    for (int r = 0; r < ROWS; ++r) {
      int32_t four;
      std::memcpy(&four, x[r] + at, sizeof four);
      for (int i = 0; i < 2; ++i) sum[r][i] = weight[i].add(sum[r][i], four);
    }
  }
  const float *scales = reinterpret_cast<const float *>(w);
  for (int r = 0; r < ROWS; ++r) {
    const RowTail *tail = row_tail(rows + r * int8_row_bytes(a->k), a->k);
    vf y[2];
    for (int i = 0; i < 2; ++i)
      y[i] = __builtin_convertvector(sum[r][i] - tail->excess, vf) * (tail->scale * load(scales + i * W));
    store_result<T>(a, row + r, column, y);
  }
}

template <class T>
struct Int8 {
  const Int8LinearArgs *all;
  const LinearArgs *args;

  PW_INLINE int64_t panel_bytes() const { return int8_panel_bytes(args->k); }

  template <int ROWS, bool ALONE>
  PW_INLINE void tile(int64_t row, const char *panel, int64_t column, Ahead ahead) const {
    int8_tile<T, ROWS, ALONE>(all, row, reinterpret_cast<const uint8_t *>(panel), column, ahead);
  }
};

void linear_int8(const Int8LinearArgs *args, int64_t first, int64_t end, int64_t next) {
  if (args->linear.dtype == kBFloat16)
    run_panels(Int8<bf16>{args, &args->linear}, first, end, next);
  else
    run_panels(Int8<float>{args, &args->linear}, first, end, next);
}

void pack_int8(const void *weight, void *packed, int64_t n, int64_t k, int32_t dtype, int64_t first, int64_t end) {
  if (dtype == kBFloat16)
    pack_int8_panels(static_cast<const bf16 *>(weight), static_cast<uint8_t *>(packed), n, k, first, end);
  else
    pack_int8_panels(static_cast<const float *>(weight), static_cast<uint8_t *>(packed), n, k, first, end);
}

}  // namespace
