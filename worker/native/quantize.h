// Rows become int8: each rotated, then divided into 127 steps of its own on either side of zero.
//
// To rotate is to multiply every kRotation values by the Hadamard matrix of that size. Where both sides of a product are
// rotated, it stays what it was (times kRotation), and a value that stands out of its row is spread over kRotation
// places; without that, one such value would set the step of the whole row. A row is filled up with zeros to whole
// rotations.

#pragma once

#include "kernels.h"
#include "vec.h"

namespace {

using namespace pagewire;

constexpr int kVectors = kRotation / W;

// A quantized row of x: its values, then this in a line of its own, which also keeps rows off the same sets of a cache.
struct RowTail {
  float scale;
  int32_t excess;  // 128 × the sum of the values
};

constexpr int64_t kRowTailBytes = 64;

PW_INLINE int64_t rotated_k(int64_t k) { return (k + kRotation - 1) / kRotation * kRotation; }

int64_t int8_row_bytes(int64_t k) { return rotated_k(k) + kRowTailBytes; }

PW_INLINE RowTail *row_tail(int8_t *row, int64_t k) { return reinterpret_cast<RowTail *>(row + rotated_k(k)); }

// v[i ^ H] for every lane i.
template <int H>
PW_INLINE vf exchange(vf v) {
#if defined(__AVX512F__)
  if constexpr (H < 4) return (vf)_mm512_permute_ps((__m512)v, H == 1 ? 0xb1 : 0x4e);
  return (vf)_mm512_shuffle_f32x4((__m512)v, (__m512)v, H == 4 ? 0xb1 : 0x4e);
#elif defined(__AVX2__)
  if constexpr (H < 4) return (vf)_mm256_permute_ps((__m256)v, H == 1 ? 0xb1 : 0x4e);
  return (vf)_mm256_permute2f128_ps((__m256)v, (__m256)v, 1);
#else
  return H == 1 ? vf{v[1], v[0], v[3], v[2]} : vf{v[2], v[3], v[0], v[1]};
#endif
}

// One stage within vectors: a + b where bit H of the lane is clear, a - b where it is set.
template <int H>
PW_INLINE void rotate_lanes(vf *v) {
  vf sign;
  for (int i = 0; i < W; ++i) sign[i] = i & H ? -1.0f : 1.0f;
  for (int i = 0; i < kVectors; ++i) v[i] = exchange<H>(v[i]) + v[i] * sign;
  if constexpr (2 * H < W) rotate_lanes<2 * H>(v);
}

// kRotation values times the Hadamard matrix.
PW_INLINE void rotate(vf *v) {
  rotate_lanes<1>(v);
  for (int half = 1; half < kVectors; half *= 2)
    for (int i = 0; i < kVectors; ++i)
      if (!(i & half)) {
        const vf a = v[i], b = v[i | half];
        v[i] = a + b;
        v[i | half] = a - b;
      }
}

// Rotates k values into out [rotated_k(k)]; returns the largest magnitude, NaN where there is one.
template <class T>
PW_INLINE float rotate_row(const T *x, int64_t k, float *out) {
  // As integers, magnitudes are in the same order, and a NaN is above all of them.
  vu largest = {};
  for (int64_t at = 0; at < k; at += kRotation) {
    vf v[kVectors];
    if (k - at >= kRotation) {
      for (int i = 0; i < kVectors; ++i) v[i] = load(x + at + i * W);
    } else {
      T rest[kRotation] = {};
      std::memcpy(rest, x + at, (k - at) * sizeof(T));
      for (int i = 0; i < kVectors; ++i) v[i] = load(rest + i * W);
    }
    rotate(v);
    for (int i = 0; i < kVectors; ++i) {
      const vu magnitude = (vu)v[i] & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
      store(out + at + i * W, v[i]);
    }
  }
  uint32_t bits = 0;
  for (int i = 0; i < W; ++i) bits = largest[i] > bits ? largest[i] : bits;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// What to multiply by, so that the largest magnitude becomes 127; a row of next to nothing becomes zeros.
PW_INLINE float steps_per_unit(float largest) { return largest >= 1e-30f ? 127.0f / largest : 0.0f; }

// To the nearest integer, ties to even, for what lies within ±2^22. x is rounded before: no multiplication that x comes
// from may be contracted with what is done here, or instruction sets would differ.
PW_INLINE vi to_integer(vf x) {
#if defined(__AVX512F__)
  return (vi)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
  return (vi)_mm256_cvtps_epi32((__m256)x);
#else
  asm("" : "+m"(x));
  const vf shift = splat(12582912.0f);
  return (vi)(x + shift) - (vi)shift;
#endif
}

typedef int8_t vb __attribute__((vector_size(W)));

template <class T>
void quantize_row(const T *x, int64_t k, int8_t *row) {
  alignas(64) float rotated[kMaxInt8K];
  const float largest = rotate_row(x, k, rotated);
  const float factor = steps_per_unit(largest);
  vu sum = {};
  for (int64_t at = 0; at < rotated_k(k); at += W) {
    const vi value = to_integer(load(rotated + at) * factor);
    sum += (vu)value;
    const vb narrow = __builtin_convertvector(value, vb);
    std::memcpy(row + at, &narrow, sizeof narrow);
  }
  uint32_t total = 0;
  for (int i = 0; i < W; ++i) total += sum[i];
  *row_tail(row, k) = {largest * (1.0f / 127.0f), int32_t(128 * total)};
}

// Rows [first, end) of x to args->rows.
void quantize_rows(const Int8LinearArgs *args, int64_t first, int64_t end) {
  const LinearArgs *a = &args->linear;
  int8_t *rows = static_cast<int8_t *>(args->rows);
  for (int64_t row = first; row < end; ++row) {
    if (a->dtype == kBFloat16)
      quantize_row(static_cast<const bf16 *>(a->x) + row * a->x_stride, a->k, rows + row * int8_row_bytes(a->k));
    else
      quantize_row(static_cast<const float *>(a->x) + row * a->x_stride, a->k, rows + row * int8_row_bytes(a->k));
  }
}

}  // namespace
