// A vector of floats as wide as the unit's instruction set, on the compiler's vector extensions, so that one source
// serves them all. Included by level.cpp alone; everything has internal linkage.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

#define PW_INLINE inline __attribute__((always_inline))

struct bf16 {
  uint16_t bits;
};

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));

PW_INLINE vf splat(float x) { return x - vf{}; }
PW_INLINE vf bits_to_float(vu x) { return (vf)x; }

PW_INLINE vf load(const float *p) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

PW_INLINE vf load(const bf16 *p) {
#if defined(__AVX512F__)
  return bits_to_float((vu)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))) << 16);
#elif defined(__AVX2__)
  // By name: GCC 12 widens a vector of 16 bits in halves.
  return bits_to_float((vu)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))) << 16);
#else
  vh h;
  std::memcpy(&h, p, sizeof h);
  return bits_to_float(__builtin_convertvector(h, vu) << 16);
#endif
}

PW_INLINE void store(float *p, vf v) { std::memcpy(p, &v, sizeof v); }

// To nearest, ties to even; a NaN stays one.
PW_INLINE void store(bf16 *p, vf v) {
#if defined(__AVX512BF16__)
  const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &h, sizeof h);
#else
  vu u = (vu)v;
  vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  vu nan = (vu)(v != v);
  vh h = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), vh);
  std::memcpy(p, &h, sizeof h);
#endif
}

PW_INLINE float to_float(float x) { return x; }

PW_INLINE float to_float(bf16 x) {
  uint32_t u = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &u, sizeof f);
  return f;
}

PW_INLINE void put(float *p, float x) { *p = x; }

PW_INLINE void put(bf16 *p, float x) {
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  p->bits = x != x ? 0x7fc0 : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// sum + a · b, rounded once where the instruction set does so: by name, because a compiler need not round two copies of
// one expression alike.
PW_INLINE vf multiply_add(vf sum, vf a, vf b) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__AVX2__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
  return sum + a * b;
#endif
}

PW_INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }
PW_INLINE vf vmin(vf a, vf b) { return a < b ? a : b; }

PW_INLINE float hsum(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#elif defined(__AVX2__)
  __m128 x = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

PW_INLINE float hmax(vf v) {
  float best = v[0];
  for (int i = 1; i < W; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

// The order in which fold4, fold16 and hsum4 add a vector's lanes up: the first two of these, the next two …, then the
// first two of those sums … Taken twice, it is the order of the lanes.
#if defined(__AVX512F__)
constexpr int kLaneOrder[W] = {0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15};
#elif defined(__AVX2__)
constexpr int kLaneOrder[W] = {0, 1, 2, 3, 4, 5, 6, 7};
#else
constexpr int kLaneOrder[W] = {0, 2, 1, 3};
#endif

// The sums of vectors four by four; a vector is added up in one order, however many there are.
#if defined(__AVX512F__)
// Halfway: each sum is left in four parts, one in each lane of 128 bits.
PW_INLINE vf fold4(vf a, vf b, vf c, vf d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps((__m512)a, (__m512)b), _mm512_unpackhi_ps((__m512)a, (__m512)b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps((__m512)c, (__m512)d), _mm512_unpackhi_ps((__m512)c, (__m512)d));
  const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  return (vf)_mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
}

// The sums of 16, from four results of fold4.
PW_INLINE vf fold16(vf a, vf b, vf c, vf d) {
  const __m512 x = (__m512)a, y = (__m512)b, z = (__m512)c, w = (__m512)d;
  const __m512 xy = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
  const __m512 zw = _mm512_add_ps(_mm512_shuffle_f32x4(z, w, 0x44), _mm512_shuffle_f32x4(z, w, 0xee));
  return (vf)_mm512_add_ps(_mm512_shuffle_f32x4(xy, zw, 0x88), _mm512_shuffle_f32x4(xy, zw, 0xdd));
}
#else
PW_INLINE void hsum4(vf a, vf b, vf c, vf d, float *out) {
#if defined(__AVX2__)
  __m256 ab = _mm256_hadd_ps((__m256)a, (__m256)b);
  __m256 cd = _mm256_hadd_ps((__m256)c, (__m256)d);
  __m256 all = _mm256_hadd_ps(ab, cd);
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
#else
  out[0] = hsum(a);
  out[1] = hsum(b);
  out[2] = hsum(c);
  out[3] = hsum(d);
#endif
}
#endif

// Four rows' columns, each as four neighbouring values: that of lane l at out + kLaneOrder[l] * stride.
PW_INLINE void store_columns(const vf row[4], float *out, int stride) {
#if defined(__AVX512F__)
#define PW_SET(name) _mm512_##name
  using vector = __m512;
  using doubles = __m512d;
#elif defined(__AVX2__)
#define PW_SET(name) _mm256_##name
  using vector = __m256;
  using doubles = __m256d;
#endif
#if defined(__AVX2__)
  vector half[4];  // of rows 0 and 1, then of 2 and 3
  for (int i = 0; i < 2; ++i) {
    half[2 * i] = PW_SET(unpacklo_ps)((vector)row[2 * i], (vector)row[2 * i + 1]);
    half[2 * i + 1] = PW_SET(unpackhi_ps)((vector)row[2 * i], (vector)row[2 * i + 1]);
  }
  vector column[4];  // in the q-th 128 bits, lane 4 q + c
  for (int i = 0; i < 2; ++i) {
    column[2 * i] = (vector)PW_SET(unpacklo_pd)((doubles)half[i], (doubles)half[2 + i]);
    column[2 * i + 1] = (vector)PW_SET(unpackhi_pd)((doubles)half[i], (doubles)half[2 + i]);
  }
  for (int c = 0; c < 4; ++c) {
#if defined(__AVX512F__)
    _mm_storeu_ps(out + kLaneOrder[c] * stride, _mm512_castps512_ps128(column[c]));
    _mm_storeu_ps(out + kLaneOrder[4 + c] * stride, _mm512_extractf32x4_ps(column[c], 1));
    _mm_storeu_ps(out + kLaneOrder[8 + c] * stride, _mm512_extractf32x4_ps(column[c], 2));
    _mm_storeu_ps(out + kLaneOrder[12 + c] * stride, _mm512_extractf32x4_ps(column[c], 3));
#else
    _mm_storeu_ps(out + kLaneOrder[c] * stride, _mm256_castps256_ps128(column[c]));
    _mm_storeu_ps(out + kLaneOrder[4 + c] * stride, _mm256_extractf128_ps(column[c], 1));
#endif
  }
#undef PW_SET
#else
  for (int l = 0; l < W; ++l)
    for (int i = 0; i < 4; ++i) out[kLaneOrder[l] * stride + i] = row[i][l];
#endif
}

#if defined(__AVX512BF16__)
// sum + a · b, where every element of a and b is a pair of bf16.
PW_INLINE vf dot_pairs(vf sum, vu a, vu b) { return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b); }
#endif

// e to the x: within 2 units in the last place; 0 below -87.3 and for minus infinity, infinity above 88.7; NaN stays.
PW_INLINE vf vexp(vf x) {
  const vf shift = splat(12582912.0f);  // 1.5 · 2^23: adding it rounds to an integer in the low bits
  vf clamped = vmin(x, splat(88.8f));
  clamped = clamped < splat(-87.3f) ? splat(-87.3f) : clamped;
  vf z = clamped * 1.44269504f + shift;
  vf n = z - shift;
  vf r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
#if defined(__AVX512F__)
  vf y = (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  // Two factors, because 2^128 is no float.
  vi e = (vi)z - (vi)shift;
  vi half = e >> 1;
  vf y = p * (vf)((half + 127) << 23) * (vf)((e - half + 127) << 23);
#endif
  y = x < splat(-87.3f) ? vf{} : y;
  return x != x ? x : y;
}

}  // namespace
