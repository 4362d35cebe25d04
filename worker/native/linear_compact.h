// bf16 weights in 12 bits each, without loss: three quarters of the memory that a linear of few rows has to read.
//
// Trained weights use few of bf16's 256 exponents. A panel's values keep their sign, their mantissa and four bits of the
// exponent, counted from the panel's lowest; zero is all zeros. The few values that this does not reach stand in a list,
// in bf16, and are put in their place when their group is expanded. So results are those of linear.h to the last bit.
//
// A panel: its head, the list, then its groups. A group is kGroupK values of k for all columns: four vectors of a plain
// panel. Three of them lie in the upper 12 bits of three vectors; the fourth in their lower 4. Expanding takes five
// instructions a vector. Few rows wait for memory meanwhile. Of many rows the first tile leaves the expanded panel to the
// others; its products keep other units busy than expanding does.
//
// Milliseconds for all linears of Qwen3-0.6B's shape, two Zen 4 cores at 34 GB/s, by rows:
//
//     rows               1      2      8     12     16     32     64
//     plain           35.6   35.0   36.4   42.2   49.0   93.9  180.2
//     compact         27.8   27.8   31.5   42.6   49.5   95.1  180.9
//
// Expanding in every tile anew took 106 ms at 32 rows. Without bf16 products expanding costs more than it saves from four
// rows on (44 ms for 39 at 6 rows, AVX512 with VNNI), so only the instruction set that has them packs like this.

#pragma once

#include "kernels.h"
#include "linear.h"
#include "vec.h"

namespace {

using namespace pagewire;

constexpr int kGroupK = 4;
constexpr int kGroup = kGroupK * kPanel;  // values
constexpr int kGroupBytes = 3 * W * 4;
constexpr int kExponents = 16;

typedef uint16_t vw __attribute__((vector_size(W * 4)));
typedef int16_t vs __attribute__((vector_size(W * 4)));

PW_INLINE vw load_words(const void *p) {
  vw v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

PW_INLINE bool any(vw v) {
  uint64_t part[W / 2], all = 0;
  std::memcpy(part, &v, sizeof v);
  for (uint64_t p : part) all |= p;
  return all;
}

struct Exceptional {
  uint32_t at;  // group × kGroup + place in it; ascending
  uint16_t value;
};

struct CompactHead {
  uint16_t lowest;  // exponent, where bf16 has it: shifted left by 7
  uint32_t exceptions;
};

// How many exceptions a panel has room for.
PW_INLINE int64_t compact_exceptions(int64_t k) { return k * kPanel / 512; }

PW_INLINE int64_t compact_head_bytes(int64_t k) {
  return (sizeof(CompactHead) + compact_exceptions(k) * sizeof(Exceptional) + 63) / 64 * 64;
}

int64_t compact_panel_bytes(int64_t k) {
  return (compact_head_bytes(k) + k / kGroupK * kGroupBytes + 63) / 64 * 64;
}

struct CompactPanel {
  const CompactHead *head;
  const Exceptional *exceptions;
  const char *groups;
  PW_INLINE CompactPanel(const char *panel, int64_t k)
      : head(reinterpret_cast<const CompactHead *>(panel)),
        exceptions(reinterpret_cast<const Exceptional *>(head + 1)),
        groups(panel + compact_head_bytes(k)) {}
};

PW_INLINE int exponent(uint16_t bits) { return bits >> 7 & 0xff; }

// The lowest of the kExponents exponents that most of some values have, by a sample; where bf16 has it. Of several ranges
// that hold as many it is the one in the middle.
uint16_t lowest_exponent(const bf16 *values, int64_t num_values) {
  int32_t count[256] = {};
  const int64_t stride = num_values > 16384 ? 11 : 1;  // in no rhythm of a matrix
  for (int64_t i = 0; i < num_values; i += stride) count[exponent(values[i].bits)] += values[i].bits != 0;
  int32_t within = 0, most = 0;
  for (int e = 0; e < kExponents; ++e) most = within += count[e];
  int first = 0, last = 0;
  for (int e = 1; e + kExponents <= 256; ++e) {
    within += count[e + kExponents - 1] - count[e - 1];
    if (within > most) {
      most = within;
      first = e;
    }
    if (within == most) last = e;
  }
  return uint16_t((first + last) / 2 << 7);
}

// All ones where a value is neither zero nor one of those that count from this exponent.
PW_INLINE vw beyond(vw v, uint16_t lowest) {
  const vw from_lowest = (v & 0x7fff) - lowest;
  return (vw)(from_lowest >= kExponents << 7 | v == lowest) & (vw)(v != 0);
}

// The columns of a weight [n, k] that are in one panel.
struct Columns {
  const bf16 *values;
  int64_t count;  // of values
  PW_INLINE Columns(const bf16 *weight, int64_t n, int64_t k, int64_t panel)
      : values(weight + panel * kPanel * k), count((n - panel * kPanel < kPanel ? n - panel * kPanel : kPanel) * k) {}
};

// Whether every panel has room for its exceptions.
bool compactable(const void *weight, int64_t n, int64_t k) {
  if (k % kGroupK) return false;
  for (int64_t panel = 0; panel * kPanel < n; ++panel) {
    const Columns columns(static_cast<const bf16 *>(weight), n, k, panel);
    const uint16_t lowest = lowest_exponent(columns.values, columns.count);
    int64_t exceptions = 0;
    for (int64_t i = 0; i < columns.count; i += 2 * W) {
      vw v{};
      const int64_t left = columns.count - i;
      std::memcpy(&v, columns.values + i, left < 2 * W ? left * 2 : sizeof v);
      const vw out = beyond(v, lowest);
      for (int lane = 0; any(out) && lane < 2 * W; ++lane) exceptions += out[lane] & 1;
    }
    if (exceptions > compact_exceptions(k)) return false;
  }
  return true;
}

// Compacts a panel of linear.h.
void compact_panel(const bf16 *plain, uint16_t lowest, char *panel, int64_t k) {
  CompactHead *head = reinterpret_cast<CompactHead *>(panel);
  Exceptional *exceptional = reinterpret_cast<Exceptional *>(head + 1);
  char *to = panel + compact_head_bytes(k);
  *head = {lowest, 0};
  for (int64_t group = 0; group < k / kGroupK; ++group, to += kGroupBytes) {
    vw word[4];
    for (int i = 0; i < 4; ++i) {
      vw v = load_words(plain + group * kGroup + i * 2 * W);
      const vw out = beyond(v, lowest);
      for (int lane = 0; any(out) && lane < 2 * W; ++lane)
        if (out[lane]) exceptional[head->exceptions++] = {uint32_t(group * kGroup + i * 2 * W + lane), v[lane]};
      v &= ~out;
      word[i] = ((v & 0x8000) | ((((v & 0x7fff) - lowest) << 4) & 0x7ff0)) & (vw)(v != 0);
    }
    for (int i = 0; i < 3; ++i) {
      const vw both = word[i] | (word[3] >> (4 * i + 4) & 15);
      std::memcpy(to + i * sizeof both, &both, sizeof both);
    }
  }
}

// A weight [n, k]; `plain` has room for one panel of linear.h.
void pack_compact(const void *weight, void *packed, void *plain, int64_t n, int64_t k) {
  for (int64_t panel = 0; panel * kPanel < n; ++panel) {
    const Columns columns(static_cast<const bf16 *>(weight), n, k, panel);
    pack_panels(columns.values, static_cast<bf16 *>(plain), columns.count / k, k, 0, 1);
    compact_panel(static_cast<const bf16 *>(plain), lowest_exponent(columns.values, columns.count),
                  static_cast<char *>(packed) + panel * compact_panel_bytes(k), k);
  }
}

// ---- expanding

PW_INLINE vw widen_word(vw word, vw lowest) {
  const vw mask = vw{} + 0x87ff;
  const vw moved = (vw)((vs)word >> 4);  // brings the sign along
  const __mmask32 nonzero = _mm512_test_epi16_mask((__m512i)moved, (__m512i)mask);
  return (vw)_mm512_maskz_add_epi16(nonzero, (__m512i)(moved & mask), (__m512i)lowest);
}

// One group to the four vectors of a plain panel.
PW_INLINE void expand_group(const char *group, vw lowest, vw *v) {
  const vw a = load_words(group), b = load_words(group + W * 4), c = load_words(group + 2 * W * 4);
  v[0] = widen_word(a, lowest);
  v[1] = widen_word(b, lowest);
  v[2] = widen_word(c, lowest);
  const vw lower = (a << 4 & 0xf0ff) | (b << 8 & 0x0f00);
  v[3] = widen_word((lower & 0x0fff) | c << 12, lowest);
}

// Puts a group's exceptions in their place.
PW_INLINE const Exceptional *put_exceptional(const Exceptional *next, const Exceptional *end, int64_t group, vw *v) {
  alignas(64) uint16_t value[kGroup];
  std::memcpy(value, v, sizeof value);
  for (; next < end && next->at / kGroup == group; ++next) value[next->at % kGroup] = next->value;
  std::memcpy(v, value, sizeof value);
  return next;
}

// The first tile of a panel, as linear_tile. Unless it is ALONE, `expanded` gets the plain panel.
template <int ROWS, bool ALONE>
PW_INLINE void compact_tile(const LinearArgs *a, const char *packed, int64_t column, Ahead ahead, char *expanded) {
  constexpr int kLines = ALONE ? (kGroupBytes + 63) / 64 : 2;
  constexpr int kAdvance = ALONE ? kGroupBytes : 2 * 64;
  const CompactPanel panel(packed, a->k);
  const vw lowest = vw{} + panel.head->lowest;
  const Exceptional *next = panel.exceptions, *end = next + panel.head->exceptions;
  int64_t exceptional = next < end ? next->at / kGroup : -1;
  const bf16 *x[ROWS];
  for (int r = 0; r < ROWS; ++r) x[r] = static_cast<const bf16 *>(a->x) + r * a->x_stride;
  vf sum[ROWS][2] = {};
  const char *from = panel.groups;
  for (int64_t group = 0; group < a->k / kGroupK; ++group, from += kGroupBytes) {
    if (ahead.line < ahead.end) {
      for (int i = 0; i < kLines; ++i) __builtin_prefetch(ahead.line + i * 64, 0, ALONE ? 3 : 2);
      ahead.line += kAdvance;
    }
    vw v[4];
    expand_group(from, lowest, v);
    if (__builtin_expect(group == exceptional, 0)) {
      next = put_exceptional(next, end, group, v);
      exceptional = next < end ? next->at / kGroup : -1;
    }
    if (!ALONE)  // by vectors: a copy of the whole array goes through the stack
      for (int i = 0; i < 4; ++i) std::memcpy(expanded + (group * 4 + i) * sizeof(vw), &v[i], sizeof(vw));
    for (int step = 0; step < 2; ++step) {
      const Step<bf16>::Weight weight[2] = {Step<bf16>::from_bits((vu)v[2 * step]),
                                            Step<bf16>::from_bits((vu)v[2 * step + 1])};
      for (int r = 0; r < ROWS; ++r) Step<bf16>::add(sum[r], weight, x[r] + group * kGroupK + step * 2);
    }
  }
  for (int r = 0; r < ROWS; ++r) store_result<bf16>(a, r, column, sum[r]);
}

struct Compact {
  const LinearArgs *args;
  char *expanded;  // room for one plain panel

  PW_INLINE int64_t panel_bytes() const { return compact_panel_bytes(args->k); }

  template <int ROWS, bool ALONE>
  PW_INLINE void tile(int64_t row, const char *panel, int64_t column, Ahead ahead) const {
    if (row == 0)
      compact_tile<ROWS, ALONE>(args, panel, column, ahead, expanded);
    else
      linear_tile<bf16, ROWS, ALONE>(args, row, reinterpret_cast<const bf16 *>(expanded), column, ahead);
  }
};

void linear_compact(const LinearArgs *args, void *expanded, int64_t first, int64_t end, int64_t next) {
  run_panels(Compact{args, static_cast<char *>(expanded)}, first, end, next);
}

// Rows ids[first … end) of the weight that was packed.
void unpack_compact(const int64_t *ids, const void *packed, void *out, int64_t k, int64_t first, int64_t end) {
  for (int64_t i = first; i < end; ++i) {
    const CompactPanel panel(static_cast<const char *>(packed) + ids[i] / kPanel * compact_panel_bytes(k), k);
    const int64_t lane = ids[i] % kPanel * 2;  // of a step's 2 · kPanel values
    bf16 *row = static_cast<bf16 *>(out) + i * k;
    for (int64_t at = 0; at < k; ++at) {
      const int64_t vector = (at % kGroupK / 2 * 2 * kPanel + lane + at % 2) / (2 * W);
      const uint16_t *group = reinterpret_cast<const uint16_t *>(panel.groups + at / kGroupK * kGroupBytes);
      const uint16_t *words = group + (lane + at % 2) % (2 * W);
      uint16_t word = 0;
      if (vector < 3)
        word = words[vector * 2 * W];
      else
        for (int j = 0; j < 3; ++j) word |= uint16_t((words[j * 2 * W] & 15) << (4 * j + 4));
      const uint16_t value = uint16_t((word & 0x8000) | (word >> 4 & 0x07ff));
      row[at].bits = value ? uint16_t(value + panel.head->lowest) : 0;
    }
    for (uint32_t e = 0; e < panel.head->exceptions; ++e) {
      const uint32_t place = panel.exceptions[e].at % kGroup;
      if (place % (2 * kPanel) / 2 == ids[i] % kPanel)
        row[panel.exceptions[e].at / kGroup * kGroupK + place / (2 * kPanel) * 2 + place % 2].bits =
            panel.exceptions[e].value;
    }
  }
}

}  // namespace
