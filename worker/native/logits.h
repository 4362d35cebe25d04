// Wide passes over one row of logits. What is narrow about sampling is in sampler.cpp.

#pragma once

#include "elementwise.h"
#include "kernels.h"
#include "vec.h"

namespace {

using namespace pagewire;

template <class T>
float maxima_of(const T *x, int64_t n, float *maxima) {
  float largest = kNegInf;
  vi nan = {};
  bool rest_nan = false;
  for (int64_t block = 0; block * kSumBlock < n; ++block) {
    const int64_t end = (block + 1) * kSumBlock < n ? (block + 1) * kSumBlock : n;
    int64_t i = block * kSumBlock;
    vf best = splat(kNegInf);
    for (; i + W <= end; i += W) {
      const vf value = load(x + i);
      nan |= (vi)(value != value);
      best = vmax(best, value);
    }
    float top = hmax(best);
    for (; i < end; ++i) {
      const float value = to_float(x[i]);
      rest_nan |= value != value;
      top = value > top ? value : top;
    }
    maxima[block] = top;
    largest = top > largest ? top : largest;
  }
  for (int i = 0; i < W; ++i) rest_nan |= nan[i] != 0;
  return rest_nan ? __builtin_nanf("") : largest;
}

float row_maxima(const LogitsRow *row, float *maxima) {
  return row->dtype == kBFloat16 ? maxima_of(static_cast<const bf16 *>(row->logits), row->vocab, maxima)
                                 : maxima_of(static_cast<const float *>(row->logits), row->vocab, maxima);
}

template <class T>
void weights_of(const T *x, int64_t n, float largest, float temperature, float *weights, float *sums) {
  for (int64_t block = 0; block * kSumBlock < n; ++block) {
    const int64_t end = (block + 1) * kSumBlock < n ? (block + 1) * kSumBlock : n;
    int64_t i = block * kSumBlock;
    vf sum = {};
    float rest = 0;
    for (; i + W <= end; i += W) {
      const vf weight = vexp((load(x + i) - largest) / temperature);
      sum += weight;
      store(weights + i, weight);
    }
    for (; i < end; ++i) {
      weights[i] = vexp(splat((to_float(x[i]) - largest) / temperature))[0];
      rest += weights[i];
    }
    sums[block] = hsum(sum) + rest;
  }
}

void row_weights(const LogitsRow *row, float largest, float temperature, float *weights, float *sums) {
  if (row->dtype == kBFloat16)
    weights_of(static_cast<const bf16 *>(row->logits), row->vocab, largest, temperature, weights, sums);
  else
    weights_of(static_cast<const float *>(row->logits), row->vocab, largest, temperature, weights, sums);
}

int64_t at_least(const float *values, int64_t first, int64_t end, float bound, int32_t *ids) {
  int64_t found = 0, i = first;
  for (; i + W <= end; i += W) {
#if defined(__AVX512F__)
    const __m512 value = (__m512)load(values + i);
    const __mmask16 hit = _mm512_cmp_ps_mask(value, _mm512_set1_ps(bound), _CMP_GE_OQ);
    if (!hit) continue;
#endif
    for (int j = 0; j < W; ++j) {
      ids[found] = int32_t(i + j);
      found += values[i + j] >= bound;
    }
  }
  for (; i < end; ++i) {
    ids[found] = int32_t(i);
    found += values[i] >= bound;
  }
  return found;
}

void widen(const LogitsRow *row, int64_t first, int64_t end, float *out) {
  if (row->dtype == kBFloat16)
    widen_values(static_cast<const bf16 *>(row->logits) + first, end - first, out);
  else
    widen_values(static_cast<const float *>(row->logits) + first, end - first, out);
}

}  // namespace
