// What runs between the linears: norms, rotation with the KV write, the gated activation.

#pragma once

#include <cmath>

#include "kernels.h"
#include "vec.h"

namespace {

using namespace pagewire;

template <class T>
PW_INLINE float sum_of_squares(const T *x, int64_t n) {
  vf sum[2] = {};
  int64_t i = 0;
  for (; i + 2 * W <= n; i += 2 * W)
    for (int j = 0; j < 2; ++j) {
      const vf value = load(x + i + j * W);
      sum[j] += value * value;
    }
  float rest = 0;
  for (; i < n; ++i) rest += to_float(x[i]) * to_float(x[i]);
  return hsum(sum[0] + sum[1]) + rest;
}

template <class T>
void norm_rows(const NormArgs *a, int64_t first, int64_t end) {
  const int64_t n = a->width;
  for (int64_t row = first; row < end; ++row) {
    float *x = a->x + row * n;
    T *out = static_cast<T *>(a->out) + row * n;
    if (a->delta) {
      const T *delta = static_cast<const T *>(a->delta) + row * n;
      int64_t i = 0;
      for (; i + W <= n; i += W) store(x + i, load(x + i) + load(delta + i));
      for (; i < n; ++i) x[i] += to_float(delta[i]);
    }
    const float factor = 1.0f / std::sqrt(sum_of_squares(x, n) + a->norm_floor);
    int64_t i = 0;
    for (; i + W <= n; i += W) store(out + i, load(x + i) * factor * load(a->weight + i));
    for (; i < n; ++i) put(out + i, x[i] * factor * a->weight[i]);
  }
}

void norm(const NormArgs *a, int64_t first, int64_t end) {
  if (a->dtype == kBFloat16)
    norm_rows<bf16>(a, first, end);
  else
    norm_rows<float>(a, first, end);
}

// Norm (where there is one) and rotation of one head, from x to out, which may be the same.
template <class T>
PW_INLINE void rotate_head(const T *x, T *out, const float *weight, const float *cos, const float *sin, int D,
                           float norm_floor) {
  float factor = 1.0f;
  if (weight) factor = 1.0f / std::sqrt(sum_of_squares(x, D) + norm_floor);
  const int half = D / 2;
  int i = 0;
  for (; i + W <= half; i += W) {
    vf a = load(x + i), b = load(x + half + i);
    if (weight) {
      a = a * factor * load(weight + i);
      b = b * factor * load(weight + half + i);
    }
    const vf c = load(cos + i), s = load(sin + i);
    store(out + i, a * c - b * s);
    store(out + half + i, b * c + a * s);
  }
  for (; i < half; ++i) {
    float a = to_float(x[i]), b = to_float(x[half + i]);
    if (weight) {
      a = a * factor * weight[i];
      b = b * factor * weight[half + i];
    }
    put(out + i, a * cos[i] - b * sin[i]);
    put(out + half + i, b * cos[i] + a * sin[i]);
  }
}

template <class T>
void rotate_rows(const RotateArgs *a, int64_t first, int64_t end) {
  const int D = a->head_dim, H = a->num_heads, K = a->num_kv_heads, P = a->block_size;
  for (int64_t row = first; row < end; ++row) {
    T *x = static_cast<T *>(a->qkv) + row * a->qkv_stride;
    const float *cos = a->cos_sin + a->positions[row] * D, *sin = cos + D / 2;
    for (int h = 0; h < H; ++h)
      rotate_head(x + h * D, x + h * D, a->qk_norm ? a->qk_norm + h * D : nullptr, cos, sin, D, a->norm_floor);
    const int64_t kv_position = a->kv_positions[row];
    if (kv_position < 0) continue;
    const int64_t block = kv_position / P, offset = kv_position % P;
    for (int h = 0; h < K; ++h) {
      const int64_t at = ((block * K + h) * P + offset) * D;
      rotate_head(x + (H + h) * D, static_cast<T *>(a->k) + at, a->qk_norm ? a->qk_norm + (H + h) * D : nullptr, cos,
                  sin, D, a->norm_floor);
      std::memcpy(static_cast<T *>(a->v) + at, x + (H + K + h) * D, D * sizeof(T));
    }
  }
}

void rotate_and_store(const RotateArgs *a, int64_t first, int64_t end) {
  if (a->dtype == kBFloat16)
    rotate_rows<bf16>(a, first, end);
  else
    rotate_rows<float>(a, first, end);
}

template <class T>
void silu_mul_rows(const SiluMulArgs *a, int64_t first, int64_t end) {
  const int64_t n = a->width;
  for (int64_t row = first; row < end; ++row) {
    const T *gate = static_cast<const T *>(a->gate_up) + row * 2 * n, *up = gate + n;
    T *y = static_cast<T *>(a->out) + row * n;
    int64_t i = 0;
    for (; i + W <= n; i += W) {
      const vf g = load(gate + i);
      store(y + i, g / (1.0f + vexp(-g)) * load(up + i));
    }
    for (; i < n; ++i) {
      const float g = to_float(gate[i]);
      put(y + i, g / (1.0f + vexp(splat(-g))[0]) * to_float(up[i]));
    }
  }
}

void silu_mul(const SiluMulArgs *a, int64_t first, int64_t end) {
  if (a->dtype == kBFloat16)
    silu_mul_rows<bf16>(a, first, end);
  else
    silu_mul_rows<float>(a, first, end);
}

template <class T>
PW_INLINE void widen_values(const T *x, int64_t n, float *out) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(out + i, load(x + i));
  for (; i < n; ++i) out[i] = to_float(x[i]);
}

}  // namespace
