// Cuts kernels into tasks for the pool. Small work is not spread over threads: waking and awaiting one costs more than
// doing it.

#include "tasks.h"

#include <vector>

#include "library.h"
#include "thread_pool.h"

namespace pagewire {

namespace {

constexpr int64_t kTaskBytes = 128 << 10;  // of weight: large against taking a task, small against a step
constexpr int64_t kLeastTasks = 8;

constexpr int64_t kSkinnyRows = 12;
constexpr int64_t kRunBytes = 1 << 20;  // of a skinny linear's weight, and of the tasks that come last
constexpr int64_t kShortBytes = 64 << 10;

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

// Panels [0, panels) of a linear. Few rows wait for memory, which gives most in long runs: a step of one sequence of
// Qwen3-0.6B's shape took 27.2 ms for 28.0 in tasks of 128 KB, and 21.6 for 24.8 while memory was fast. Short ones come
// last, so that threads end together. Many rows take as long as their products do, and gain nothing.
template <class Body>
void over_panels(int64_t panels, int64_t bytes, int64_t num_rows, const Body &body) {
  struct Call {
    const Body *body;
    int64_t panels;
    int64_t run, num_runs;  // panels in a long task, and how many of them
    int64_t task;           // panels in the others
  } call{&body, panels, 0, 0, 0};
  call.task = (num_rows > kSkinnyRows ? kTaskBytes : kShortBytes) / bytes;
  if (call.task > panels / kLeastTasks) call.task = panels / kLeastTasks;
  if (call.task < 1) call.task = 1;
  // A thread's part of a small weight or of many threads is no longer than two of its runs.
  const int64_t threads = max_threads();
  call.run = kRunBytes / bytes < panels / (2 * threads) ? kRunBytes / bytes : panels / (2 * threads);
  if (num_rows <= kSkinnyRows && call.run > call.task) call.num_runs = panels / call.run - (threads + 1) / 2;
  const int64_t rest = panels - call.num_runs * call.run;
  parallel(
      [](void *context, int64_t task, int) {
        const Call *c = static_cast<const Call *>(context);
        const bool is_run = task < c->num_runs;
        const int64_t size = is_run ? c->run : c->task;
        const int64_t first = is_run ? task * size : c->num_runs * c->run + (task - c->num_runs) * size;
        const int64_t end = first + size;
        (*c->body)(first, end < c->panels ? end : c->panels, first + max_threads() * size);
      },
      &call, call.num_runs + (rest + call.task - 1) / call.task, true);
}

}  // namespace

void plan_attention(const int32_t *query_starts, const int32_t *context_lens, int32_t num_seqs, int32_t group,
                    AttentionPlan *plan) {
  AttentionItem *items = plan->items;
  int64_t count = 0, tokens = 0;
  int32_t partials = 0;
  const int32_t tile_rows = group >= kTileQueries ? 1 : kTileQueries / group;
  for (int32_t seq = 0; seq < num_seqs; ++seq) {
    const int32_t rows = query_starts[seq + 1] - query_starts[seq];
    tokens += int64_t(rows) * context_lens[seq];
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
  plan->num_items = count;
  plan->num_partials = partials;
  plan->tokens_read = tokens;
}

// A thread takes several tasks at a time, because within a run it knows what to ask of memory next.
void attend(const AttentionArgs *args) {
  constexpr int64_t kRunsPerThread = 8;
  constexpr int64_t kWorthAThread = 512 << 10;  // bytes of keys and values
  const AttentionPlan *plan = args->plan;
  const int64_t tasks = plan->num_items * args->num_kv_heads;
  const int64_t least = plan->num_items && plan->items->is_prefill ? 1 : 4;  // a piece of a prompt is large by itself
  int64_t runs = tasks / least < max_threads() * kRunsPerThread ? tasks / least : max_threads() * kRunsPerThread;
  if (runs < 1) runs = 1;
  struct Call {
    const AttentionArgs *args;
    int64_t tasks, runs;
  } call{args, tasks, runs};
  const int64_t token_bytes = 2 * args->num_kv_heads * int64_t(args->head_dim) * size_of(args->dtype);
  parallel(
      [](void *context, int64_t run, int) {
        const Call *c = static_cast<const Call *>(context);
        kernels()->attend(c->args, c->tasks * run / c->runs, c->tasks * (run + 1) / c->runs);
      },
      &call, runs, plan->tokens_read * token_bytes >= kWorthAThread);
}

void rotate_and_store(const RotateArgs *args) {
  const int64_t bytes = (args->num_heads + 2 * args->num_kv_heads) * int64_t(args->head_dim) * size_of(args->dtype);
  over_rows(args->num_rows, 2 * bytes,
            [=](int64_t first, int64_t end) { kernels()->rotate_and_store(args, first, end); });
}

void norm(const NormArgs *args) {
  over_rows(args->num_rows, args->width * 12, [=](int64_t first, int64_t end) { kernels()->norm(args, first, end); });
}

void silu_mul(const SiluMulArgs *args) {
  over_rows(args->num_rows, args->width * 6 * size_of(args->dtype),
            [=](int64_t first, int64_t end) { kernels()->silu_mul(args, first, end); });
}

int64_t panels_of(int64_t n) { return (n + kernels()->panel - 1) / kernels()->panel; }

int64_t panel_bytes(int64_t k, int32_t dtype) {
  return (dtype == kBFloat16 ? (k + 1) / 2 * 4 : k * 4) * kernels()->panel;
}

int64_t packed_bytes(int64_t n, int64_t k, int32_t dtype) { return panels_of(n) * panel_bytes(k, dtype); }
int64_t compact_bytes(int64_t n, int64_t k) { return panels_of(n) * kernels()->compact_panel_bytes(k); }
int64_t int8_packed_bytes(int64_t n, int64_t k) { return panels_of(n) * kernels()->int8_panel_bytes(k); }

void *scratch(int64_t bytes) {
  thread_local std::vector<char> memory;
  if (int64_t(memory.size()) < bytes + 64) memory.resize(bytes + 64);
  return memory.data() + -reinterpret_cast<uintptr_t>(memory.data()) % 64;
}

void linear(const LinearArgs *args) {
  over_panels(panels_of(args->n), panel_bytes(args->k, args->dtype), args->num_rows,
              [=](int64_t first, int64_t end, int64_t next) { kernels()->linear(args, first, end, next); });
}

void linear_compact(const LinearArgs *args) {
  const Kernels *k = kernels();
  over_panels(panels_of(args->n), k->compact_panel_bytes(args->k), args->num_rows,
              [=](int64_t first, int64_t end, int64_t next) {
                k->linear_compact(args, scratch(panel_bytes(args->k, kBFloat16)), first, end, next);
              });
}

void linear_int8(const Int8LinearArgs *args) {
  const LinearArgs *a = &args->linear;
  over_rows(a->num_rows, a->k * 16, [=](int64_t first, int64_t end) { kernels()->quantize_rows(args, first, end); });
  over_panels(panels_of(a->n), kernels()->int8_panel_bytes(a->k), a->num_rows,
              [=](int64_t first, int64_t end, int64_t next) { kernels()->linear_int8(args, first, end, next); });
}

// A row's values lie in as many lines of memory.
void unpack_rows(const int64_t *ids, int64_t num_ids, const void *packed, void *out, int64_t k, int32_t dtype) {
  over_rows(num_ids, k * 64,
            [=](int64_t first, int64_t end) { kernels()->unpack(ids, packed, out, k, dtype, first, end); });
}

void unpack_compact_rows(const int64_t *ids, int64_t num_ids, const void *packed, void *out, int64_t k) {
  over_rows(num_ids, k * 64,
            [=](int64_t first, int64_t end) { kernels()->unpack_compact(ids, packed, out, k, first, end); });
}

}  // namespace pagewire
