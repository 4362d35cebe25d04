// Draws one token per row of logits: the narrow part of it, in double precision as pagewire.worker.sampling.sampler has it.
// Wide passes are the kernels'. A row is one task, so rows have no influence on each other.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "library.h"
#include "thread_pool.h"

namespace pagewire {
namespace {

constexpr int32_t kNoToken = -1;
constexpr double kMinShrink = 0.75;  // a round of narrowing that keeps more is the last

// A row of parameters, as pagewire.wire.columns.ROW lays it out.
struct Parameters {
  uint64_t seed;
  float temperature;
  int32_t top_k;
  float top_p;
  float min_p;
  float repetition_penalty, frequency_penalty, presence_penalty;  // the processors'; nothing here reads them
};
constexpr char kLayout[] =
    "seed temperature top_k top_p min_p repetition_penalty frequency_penalty presence_penalty";

struct SampleArgs {
  const void *logits;  // [S, V], rows row_stride apart
  const Parameters *asked;
  const float *uniform;
  int32_t *tokens;
  char *scratch;
  int64_t scratch_stride;
  int64_t row_stride;
  int64_t vocab;
  int32_t dtype;
};

struct Candidate {
  double weight;
  float value;
  int32_t id;
};

// One thread's memory.
struct Scratch {
  float *values;  // [V]: weights, or logits as floats
  int32_t *ids;   // [V]
  Candidate *candidates;  // [V]
  float *maxima;  // by blocks
  float *sums;

  Scratch(char *memory, int64_t vocab) {
    const int64_t padded = (vocab + kSumBlock - 1) / kSumBlock * kSumBlock;
    const int64_t blocks = padded / kSumBlock;
    candidates = reinterpret_cast<Candidate *>(memory);
    values = reinterpret_cast<float *>(candidates + padded);
    ids = reinterpret_cast<int32_t *>(values + padded);
    maxima = reinterpret_cast<float *>(ids + padded);
    sums = maxima + blocks;
  }

  static int64_t bytes(int64_t vocab) {
    const int64_t padded = (vocab + kSumBlock - 1) / kSumBlock * kSumBlock;
    return padded * int64_t(sizeof(Candidate) + 8) + padded / kSumBlock * 8 + 64;
  }
};

bool heavier(const Candidate &a, const Candidate &b) { return a.weight != b.weight ? a.weight > b.weight : a.id < b.id; }
bool larger(const Candidate &a, const Candidate &b) { return a.value != b.value ? a.value > b.value : a.id < b.id; }
bool lower_id(const Candidate &a, const Candidate &b) { return a.id < b.id; }

// Drops, in order, the candidates that weigh less than `least`. Returns how many are left.
int64_t keep_min_p(Candidate *c, int64_t n, float least) {
  if (!(least > 0)) return n;
  return std::remove_if(c, c + n, [least](const Candidate &each) { return each.weight < double(least); }) - c;
}

// The first candidate, by id, at which the running sum passes draw × total; never one of no weight. There is one.
int32_t invert(const Candidate *c, int64_t n, double draw) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += c[i].weight;
  const double target = draw * total;
  double running = 0;
  int32_t last = c[0].id;
  for (int64_t i = 0; i < n; ++i) {
    running += c[i].weight;
    if (c[i].weight > 0) {
      last = c[i].id;
      if (running > target) return last;
    }
  }
  return last;
}

// The lightest of the fewest heaviest candidates that weigh `target`, at least one; the order of all is lost. By halves
// and not by sorting them: of a flat distribution top-p keeps nearly all of the vocabulary.
Candidate last_of_top_p(Candidate *c, int64_t n, double target) {
  int64_t low = 0, high = n;  // it is in between; those before `low` are heavier
  double before = 0;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    std::nth_element(c + low, c + middle, c + high, heavier);
    double weight = 0;
    for (int64_t i = low; i < middle; ++i) weight += c[i].weight;
    if (before + weight >= target) {
      high = middle;
    } else {
      before += weight;
      low = middle;
    }
  }
  return c[low];
}

// Keeps the fewest heaviest candidates that weigh `target`, at least one, ordered by id. Returns how many.
int64_t keep_top_p(Candidate *c, int64_t n, double target) {
  const Candidate last = last_of_top_p(c, n, target);
  const int64_t kept = std::partition(c, c + n, [&last](const Candidate &each) { return !heavier(last, each); }) - c;
  std::sort(c, c + kept, lower_id);
  return kept;
}

int32_t draw_top_k(const LogitsRow &row, const Scratch &s, double largest, const Parameters &asked, double draw) {
  const int64_t k = asked.top_k;
  const int64_t blocks = (row.vocab + kSumBlock - 1) / kSumBlock;
  float bound = -__builtin_inff();
  if (k < blocks) {
    std::memcpy(s.sums, s.maxima, blocks * sizeof(float));
    std::nth_element(s.sums, s.sums + k - 1, s.sums + blocks, [](float a, float b) { return a > b; });
    bound = s.sums[k - 1];
  }
  int64_t n = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    if (!(s.maxima[block] >= bound)) continue;
    const int64_t first = block * kSumBlock, end = std::min(first + kSumBlock, row.vocab);
    kernels()->widen(&row, first, end, s.values + first);
    const int64_t found = kernels()->at_least(s.values, first, end, bound, s.ids);
    for (int64_t i = 0; i < found; ++i) s.candidates[n++] = {0, s.values[s.ids[i]], s.ids[i]};
  }
  if (n > k) {
    std::nth_element(s.candidates, s.candidates + k - 1, s.candidates + n, larger);
    n = k;
  }
  if (n == 0) return kNoToken;
  std::sort(s.candidates, s.candidates + n, lower_id);
  double total = 0;
  for (int64_t i = 0; i < n; ++i) {
    s.candidates[i].weight = std::exp((double(s.candidates[i].value) - largest) / double(asked.temperature));
    total += s.candidates[i].weight;
  }
  if (asked.top_p < 1) n = keep_top_p(s.candidates, n, double(asked.top_p) * total);
  return invert(s.candidates, keep_min_p(s.candidates, n, asked.min_p), draw);
}

// Without top-p, what weighs at least min_p; the largest weighs 1.
int32_t draw_min_p(const LogitsRow &row, const Scratch &s, float min_p, double draw) {
  const int64_t n = kernels()->at_least(s.values, 0, row.vocab, min_p, s.ids);
  if (n == 0) return kNoToken;
  for (int64_t i = 0; i < n; ++i) s.candidates[i] = {double(s.values[s.ids[i]]), 0, s.ids[i]};
  return invert(s.candidates, n, draw);
}

int32_t draw_top_p(const LogitsRow &row, const Scratch &s, double total, const Parameters &asked, double draw) {
  const double target = double(asked.top_p) * total;
  // Whatever n ids weigh less than (total - target) / n each weigh less than total - target together, so those that
  // remain hold the target.
  const float bound = std::nextafter(float((total - target) / double(row.vocab)), 0.0f);
  int64_t n = kernels()->at_least(s.values, 0, row.vocab, bound, s.ids);
  for (;;) {  // each round keeps fewer, or is the last
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += s.values[s.ids[i]];
    const double spare = sum - target;
    if (!(spare > 0)) break;
    const double least = spare / double(n);
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) kept += s.values[s.ids[i]] >= least;
    if (kept == 0 || double(kept) > kMinShrink * double(n)) break;
    kept = 0;
    for (int64_t i = 0; i < n; ++i)
      if (s.values[s.ids[i]] >= least) s.ids[kept++] = s.ids[i];
    n = kept;
  }
  if (n == 0) return kNoToken;
  for (int64_t i = 0; i < n; ++i) s.candidates[i] = {double(s.values[s.ids[i]]), 0, s.ids[i]};
  const Candidate last = last_of_top_p(s.candidates, n, target);
  int64_t kept = 0;  // from the ids, which are in order still
  for (int64_t i = 0; i < n; ++i) {
    const Candidate each{double(s.values[s.ids[i]]), 0, s.ids[i]};
    if (!heavier(last, each)) s.candidates[kept++] = each;
  }
  n = kept;
  return invert(s.candidates, keep_min_p(s.candidates, n, asked.min_p), draw);
}

int32_t draw_from_all(const LogitsRow &row, const Scratch &s, double total, double draw) {
  const int64_t blocks = (row.vocab + kSumBlock - 1) / kSumBlock;
  const double target = draw * total;
  // The block in which the running sum passes the target; the last of any weight, where rounding lets none do so.
  int64_t block = 0;
  double before = 0, running = 0;
  for (int64_t i = 0; i < blocks && running <= target; ++i) {
    if (s.sums[i] == 0) continue;
    block = i;
    before = running;
    running += double(s.sums[i]);
  }
  int32_t last = 0;
  const int64_t first = block * kSumBlock, end = std::min(first + kSumBlock, row.vocab);
  for (int64_t i = first; i < end; ++i) {
    if (s.values[i] == 0) continue;
    last = int32_t(i);
    before += double(s.values[i]);
    if (before > target) break;
  }
  return last;
}

int32_t sample_row(const SampleArgs &a, int64_t index, const Scratch &s) {
  const int64_t bytes = a.dtype == kBFloat16 ? 2 : 4;
  const LogitsRow row{static_cast<const char *>(a.logits) + index * a.row_stride * bytes, a.vocab, a.dtype};
  const float largest = kernels()->row_maxima(&row, s.maxima);
  if (!std::isfinite(largest)) return kNoToken;
  const Parameters &asked = a.asked[index];
  const float temperature = asked.temperature, top_p = asked.top_p, min_p = asked.min_p;
  const int64_t k = asked.top_k;
  const double draw = double(a.uniform[index]);
  // Out of range, which NaN is too: see `are_in_range` of the other sampler.
  if (!(temperature >= 0 && k >= 0 && top_p >= 0 && top_p <= 1 && min_p >= 0 && min_p <= 1)) return kNoToken;
  const int64_t blocks = (a.vocab + kSumBlock - 1) / kSumBlock;
  if (temperature == 0) {
    const int64_t block = std::find(s.maxima, s.maxima + blocks, largest) - s.maxima;
    const int64_t first = block * kSumBlock, end = std::min(first + kSumBlock, a.vocab);
    kernels()->widen(&row, first, end, s.values);
    return int32_t(first + (std::find(s.values, s.values + (end - first), largest) - s.values));
  }
  if (k > 0 && k < a.vocab) return draw_top_k(row, s, double(largest), asked, draw);
  kernels()->row_weights(&row, largest, temperature, s.values, s.sums);
  double total = 0;
  for (int64_t block = 0; block < blocks; ++block) total += double(s.sums[block]);
  if (top_p < 1) return draw_top_p(row, s, total, asked, draw);
  if (min_p > 0) return draw_min_p(row, s, min_p, draw);
  return draw_from_all(row, s, total, draw);
}

}  // namespace
}  // namespace pagewire

using namespace pagewire;

#define PW_EXPORT extern "C" __attribute__((visibility("default")))

// Memory that pw_sample needs per thread.
PW_EXPORT int64_t pw_sample_scratch_bytes(int64_t vocab) { return (Scratch::bytes(vocab) + 63) / 64 * 64; }

// The names of a row of parameters in their order, and its size: whoever makes rows compares.
PW_EXPORT const char *pw_sample_layout() { return kLayout; }
PW_EXPORT int64_t pw_sample_row_bytes() { return int64_t(sizeof(Parameters)); }

PW_EXPORT void pw_sample(const void *logits, int64_t num_rows, int64_t vocab, int64_t row_stride, int32_t dtype,
                         const Parameters *asked, const float *uniform, int32_t *tokens, char *scratch) {
  SampleArgs args{logits,     asked, uniform, tokens, scratch, pw_sample_scratch_bytes(vocab),
                  row_stride, vocab, dtype};
  parallel(
      [](void *context, int64_t task, int thread) {
        const SampleArgs &a = *static_cast<const SampleArgs *>(context);
        a.tokens[task] = sample_row(a, task, Scratch(a.scratch + thread * a.scratch_stride, a.vocab));
      },
      &args, num_rows, num_rows * vocab >= (128 << 10));
}
