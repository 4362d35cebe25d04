// The library's interface: chooses an instruction set, cuts kernels into tasks, and owns nothing else.
//
// Small work is not spread over threads: waking and awaiting one costs more than doing it. Every function is called
// from one thread at a time, but for those that pack.

#include "library.h"

#include <cstring>
#include <vector>

#include "thread_pool.h"

namespace pagewire {

#define PW_DECLARE(level) extern const Kernels kernels_##level;
PW_DECLARE(base)
#if defined(__x86_64__)
PW_DECLARE(avx2)
PW_DECLARE(avx512)
PW_DECLARE(avx512vnni)
PW_DECLARE(avx512bf16)
#endif

namespace {

const Kernels *chosen = &kernels_base;

struct Level {
  const Kernels *kernels;
  bool (*works)();
};

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool has_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
#endif

const Level kLevels[] = {
#if defined(__x86_64__)
    {&kernels_avx512bf16, [] { return has_vnni() && __builtin_cpu_supports("avx512bf16"); }},
    {&kernels_avx512vnni, has_vnni},
    {&kernels_avx512, has_avx512},
    {&kernels_avx2, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {&kernels_base, [] { return true; }},
};

// Rows [0, num_rows) of an elementwise kernel, in as many pieces as are worth a thread each.
template <class Body>
void over_rows(int64_t num_rows, int64_t bytes_per_row, const Body &body) {
  constexpr int64_t kWorthAThread = 256 << 10;
  const int64_t worth = num_rows * bytes_per_row / kWorthAThread;
  const int64_t pieces = worth < 2 ? 1 : worth < num_rows ? worth : num_rows;
  struct Call {
    const Body *body;
    int64_t num_rows, pieces;
  } call{&body, num_rows, pieces};
  parallel(
      [](void *context, int64_t task, int) {
        const Call *c = static_cast<const Call *>(context);
        (*c->body)(c->num_rows * task / c->pieces, c->num_rows * (task + 1) / c->pieces);
      },
      &call, pieces, true);
}

int64_t size_of(int32_t dtype) { return dtype == kBFloat16 ? 2 : 4; }

}  // namespace

const Kernels *kernels() { return chosen; }

}  // namespace pagewire

using namespace pagewire;

#define PW_EXPORT extern "C" __attribute__((visibility("default")))

// Raised with every change of this interface, so that an older library is not called by newer Python.
PW_EXPORT int32_t pw_interface() { return 5; }

// The best instruction set that both this processor and `wanted` (null: any) allow. Returns its name, or null where
// the processor lacks it.
PW_EXPORT const char *pw_choose(const char *wanted) {
  for (const Level &level : kLevels) {
    if (wanted && std::strcmp(wanted, level.kernels->name) != 0) continue;
    if (!level.works()) continue;
    chosen = level.kernels;
    return chosen->name;
  }
  return nullptr;
}

PW_EXPORT void pw_set_threads(int32_t threads) { set_threads(threads); }

// Splits a step's attention into items, written to `items` (room for one per kChunkTokens of context and one per row
// at most). Returns their number; *num_partials gets the number of partial results they need.
PW_EXPORT int64_t pw_plan_attention(const int32_t *query_starts, const int32_t *context_lens, int32_t num_seqs,
                                    int32_t group, AttentionItem *items, int64_t *num_partials) {
  int64_t count = 0;
  int32_t partials = 0;
  const int32_t tile_rows = group >= kTileQueries ? 1 : kTileQueries / group;
  for (int32_t seq = 0; seq < num_seqs; ++seq) {
    const int32_t rows = query_starts[seq + 1] - query_starts[seq];
    if (rows < 2) continue;
    // The last rows see most and go first, so that no large item is left for the end.
    for (int32_t end = rows; end > 0; end -= tile_rows) {
      const int32_t first = end > tile_rows ? end - tile_rows : 0;
      items[count++] = {seq, 1, first, end - first, 0};
    }
  }
  for (int32_t seq = 0; seq < num_seqs; ++seq) {
    if (query_starts[seq + 1] - query_starts[seq] != 1) continue;
    const int32_t chunks = (context_lens[seq] + kChunkTokens - 1) / kChunkTokens;
    for (int32_t chunk = 0; chunk < chunks; ++chunk) items[count++] = {seq, 0, chunk, chunks, partials};
    if (chunks > 1) partials += chunks;
  }
  *num_partials = partials;
  return count;
}

// `work_bytes` is the KV that the step reads per layer. A thread takes several tasks at a time, because within a run it
// knows what to ask of memory next.
PW_EXPORT void pw_attend(const AttentionArgs *args, int64_t work_bytes, int64_t spread_from_bytes) {
  constexpr int64_t kRunsPerThread = 8;
  const int64_t tasks = args->num_items * args->num_kv_heads;
  const int64_t least = args->num_items && args->items->is_prefill ? 1 : 4;  // a piece of a prompt is large by itself
  int64_t runs = tasks / least < max_threads() * kRunsPerThread ? tasks / least : max_threads() * kRunsPerThread;
  if (runs < 1) runs = 1;
  struct Call {
    const AttentionArgs *args;
    int64_t tasks, runs;
  } call{args, tasks, runs};
  parallel(
      [](void *context, int64_t run, int) {
        const Call *c = static_cast<const Call *>(context);
        chosen->attend(c->args, c->tasks * run / c->runs, c->tasks * (run + 1) / c->runs);
      },
      &call, runs, work_bytes >= spread_from_bytes);
}

PW_EXPORT void pw_rotate_and_store(const RotateArgs *args) {
  const int64_t bytes = (args->num_heads + 2 * args->num_kv_heads) * int64_t(args->head_dim) * size_of(args->dtype);
  over_rows(args->num_rows, 2 * bytes,
            [=](int64_t first, int64_t end) { chosen->rotate_and_store(args, first, end); });
}

PW_EXPORT void pw_norm(const NormArgs *args) {
  over_rows(args->num_rows, args->width * 12, [=](int64_t first, int64_t end) { chosen->norm(args, first, end); });
}

PW_EXPORT void pw_silu_mul(const void *gate_up, void *out, int64_t num_rows, int64_t width, int32_t dtype) {
  over_rows(num_rows, width * 6 * size_of(dtype), [=](int64_t first, int64_t end) {
    chosen->silu_mul(gate_up, out, first, end, width, dtype);
  });
}

namespace {

constexpr int64_t kTaskBytes = 128 << 10;  // of weight: large against taking a task, small against a step
constexpr int64_t kLeastTasks = 8;

int64_t panels_of(int64_t n) { return (n + chosen->panel - 1) / chosen->panel; }

int64_t panel_bytes(int64_t k, int32_t dtype) {
  return (dtype == kBFloat16 ? (k + 1) / 2 * 4 : k * 4) * chosen->panel;
}

// Memory of the calling thread, from the start of a cache line on, of no particular content; until its next call.
void *scratch(int64_t bytes) {
  thread_local std::vector<char> memory;
  if (int64_t(memory.size()) < bytes + 64) memory.resize(bytes + 64);
  return memory.data() + -reinterpret_cast<uintptr_t>(memory.data()) % 64;
}

// Panels [0, panels) of a linear, in tasks of kTaskBytes.
template <class Body>
void over_panels(int64_t panels, int64_t bytes, const Body &body) {
  int64_t per_task = kTaskBytes / bytes;
  if (per_task > panels / kLeastTasks) per_task = panels / kLeastTasks;
  if (per_task < 1) per_task = 1;
  struct Call {
    const Body *body;
    int64_t panels, per_task;
  } call{&body, panels, per_task};
  parallel(
      [](void *context, int64_t task, int) {
        const Call *c = static_cast<const Call *>(context);
        const int64_t end = (task + 1) * c->per_task;
        (*c->body)(task * c->per_task, end < c->panels ? end : c->panels, (task + max_threads()) * c->per_task);
      },
      &call, (panels + per_task - 1) / per_task, true);
}

}  // namespace

// Memory of a packed weight [n, k].
PW_EXPORT int64_t pw_packed_bytes(int64_t n, int64_t k, int32_t dtype) { return panels_of(n) * panel_bytes(k, dtype); }

// Packs a weight on the calling thread; others may pack others at the same time.
PW_EXPORT void pw_pack(const void *weight, void *packed, int64_t n, int64_t k, int32_t dtype) {
  chosen->pack(weight, packed, n, k, dtype, 0, panels_of(n));
}

PW_EXPORT void pw_linear(const LinearArgs *args) {
  over_panels(panels_of(args->n), panel_bytes(args->k, args->dtype),
              [=](int64_t first, int64_t end, int64_t next) { chosen->linear(args, first, end, next); });
}

// Whether a bf16 weight [n, k] can be packed in 12 bits a value, and this instruction set gains by it.
PW_EXPORT bool pw_compactable(const void *weight, int64_t n, int64_t k) {
  return chosen->compactable && chosen->compactable(weight, n, k);
}

// Memory of one that can, packed.
PW_EXPORT int64_t pw_compact_bytes(int64_t n, int64_t k) { return panels_of(n) * chosen->compact_panel_bytes(k); }

// Packs it on the calling thread; others may pack others at the same time.
PW_EXPORT void pw_pack_compact(const void *weight, void *packed, int64_t n, int64_t k) {
  chosen->pack_compact(weight, packed, scratch(panel_bytes(k, kBFloat16)), n, k);
}

PW_EXPORT void pw_linear_compact(const LinearArgs *args) {
  over_panels(panels_of(args->n), chosen->compact_panel_bytes(args->k), [=](int64_t first, int64_t end, int64_t next) {
    chosen->linear_compact(args, scratch(panel_bytes(args->k, kBFloat16)), first, end, next);
  });
}

// Memory of an int8 weight [n, k], packed.
PW_EXPORT int64_t pw_int8_packed_bytes(int64_t n, int64_t k) {
  return panels_of(n) * chosen->int8_panel_bytes(k);
}

// Memory of one row of x, quantized.
PW_EXPORT int64_t pw_int8_row_bytes(int64_t k) { return chosen->int8_row_bytes(k); }

// Quantizes and packs a weight on the calling thread; others may pack others at the same time.
PW_EXPORT void pw_pack_int8(const void *weight, void *packed, int64_t n, int64_t k, int32_t dtype) {
  chosen->pack_int8(weight, packed, n, k, dtype, 0, panels_of(n));
}

PW_EXPORT void pw_linear_int8(const Int8LinearArgs *args) {
  const LinearArgs *a = &args->linear;
  over_rows(a->num_rows, a->k * 16, [=](int64_t first, int64_t end) { chosen->quantize_rows(args, first, end); });
  over_panels(panels_of(a->n), chosen->int8_panel_bytes(a->k),
              [=](int64_t first, int64_t end, int64_t next) { chosen->linear_int8(args, first, end, next); });
}

PW_EXPORT void pw_unpack_rows(const int64_t *ids, int64_t num_ids, const void *packed, void *out, int64_t k,
                              int32_t dtype) {
  // A row's values lie in as many lines of memory.
  over_rows(num_ids, k * 64, [=](int64_t first, int64_t end) { chosen->unpack(ids, packed, out, k, dtype, first, end); });
}

PW_EXPORT void pw_unpack_compact_rows(const int64_t *ids, int64_t num_ids, const void *packed, void *out, int64_t k) {
  over_rows(num_ids, k * 64,
            [=](int64_t first, int64_t end) { chosen->unpack_compact(ids, packed, out, k, first, end); });
}
