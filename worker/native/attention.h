// Attention over blocks, in place. Products of bf16 pairs where the instruction set has them; sums are always fp32.

#pragma once

#include "attention_decode.h"
#include "attention_prefill.h"
#include "kernels.h"
#include "vec.h"

namespace {

using namespace pagewire;

template <class T, class Q, class E>
void attend_run(const AttentionArgs *a, int64_t first, int64_t end) {
  Chunk<T> chunks[2];
  const int K = a->num_kv_heads;
  bool found = false;  // chunks[task % 2] is this task's already
  for (int64_t task = first; task < end; ++task) {
    const AttentionItem *item = a->plan->items + task / K;
    const int head = int(task % K);
    if (item->is_prefill) {
      prefill_piece<T, E>(a, item, head);
      continue;
    }
    if (!found) find_chunk(a, item, head, &chunks[task % 2]);
    found = task + 1 < end;  // decoding comes last
    if (found) find_chunk(a, a->plan->items + (task + 1) / K, int((task + 1) % K), &chunks[(task + 1) % 2]);
    decode_chunk<T, Q, E>(a, item, head, chunks[task % 2], found ? &chunks[(task + 1) % 2] : nullptr);
    if (item->count == 1) continue;
    // Whoever brings the last chunk puts all of them together: no second round of waiting.
    int32_t *arrivals = a->arrivals + int64_t(item->partial) * K + head;
    if (__atomic_add_fetch(arrivals, 1, __ATOMIC_ACQ_REL) < item->count) continue;
    *arrivals = 0;
    merge_chunks<T>(a, item, head);
  }
}

void attend(const AttentionArgs *a, int64_t first, int64_t end) {
#if defined(__AVX512BF16__)
  using Query = bf16;
  using Element = Pair;
#else
  using Query = float;
  using Element = float;
#endif
  if (a->dtype == kBFloat16)
    attend_run<bf16, Query, Element>(a, first, end);
  else
    attend_run<float, float, float>(a, first, end);
}

}  // namespace
