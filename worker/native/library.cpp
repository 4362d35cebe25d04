// The library's interface: chooses an instruction set, and owns nothing else. Every function is called from one thread
// at a time, but for those that pack.

#include "library.h"

#include <cstring>

#include "capture.h"
#include "tasks.h"
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

}  // namespace

const Kernels *kernels() { return chosen; }

}  // namespace pagewire

using namespace pagewire;

#define PW_EXPORT extern "C" __attribute__((visibility("default")))

// Raised with every change of this interface, so that an older library is not called by newer Python.
PW_EXPORT int32_t pw_interface() { return 12; }

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

PW_EXPORT void pw_plan_attention(const int32_t *query_starts, const int32_t *context_lens, int32_t num_seqs,
                                 int32_t group, AttentionPlan *plan) {
  plan_attention(query_starts, context_lens, num_seqs, group, plan);
}

// What a step is made of.

PW_EXPORT void pw_attend(const AttentionArgs *args) { issue<AttentionArgs, attend>(args); }

PW_EXPORT void pw_rotate_and_store(const RotateArgs *args) { issue<RotateArgs, rotate_and_store>(args); }

PW_EXPORT void pw_norm(const NormArgs *args) { issue<NormArgs, norm>(args); }

PW_EXPORT void pw_silu_mul(const SiluMulArgs *args) { issue<SiluMulArgs, silu_mul>(args); }

PW_EXPORT void pw_linear(const LinearArgs *args) {
  issue<LinearArgs, linear>(args, {args->weight, packed_bytes(args->n, args->k, args->dtype)});
}

PW_EXPORT void pw_linear_compact(const LinearArgs *args) {
  issue<LinearArgs, linear_compact>(args, {args->weight, compact_bytes(args->n, args->k)});
}

PW_EXPORT void pw_linear_int8(const Int8LinearArgs *args) {
  const LinearArgs *a = &args->linear;
  issue<Int8LinearArgs, linear_int8>(args, {a->weight, int8_packed_bytes(a->n, a->k)});
}

// capture.h has the meaning of these; a call takes so much memory.
PW_EXPORT int64_t pw_call_bytes() { return sizeof(Call); }

PW_EXPORT void pw_begin_capture(Call *calls, int64_t capacity) { begin_capture(calls, capacity); }

PW_EXPORT int64_t pw_end_capture() { return end_capture(); }

PW_EXPORT void pw_replay(const Call *calls, int64_t count) { replay(calls, count); }

// Memory of a packed weight [n, k].
PW_EXPORT int64_t pw_packed_bytes(int64_t n, int64_t k, int32_t dtype) { return packed_bytes(n, k, dtype); }

// Packs a weight on the calling thread; others may pack others at the same time.
PW_EXPORT void pw_pack(const void *weight, void *packed, int64_t n, int64_t k, int32_t dtype) {
  chosen->pack(weight, packed, n, k, dtype, 0, panels_of(n));
}

// Whether a bf16 weight [n, k] can be packed in 12 bits a value, and this instruction set gains by it.
PW_EXPORT bool pw_compactable(const void *weight, int64_t n, int64_t k) {
  return chosen->compactable && chosen->compactable(weight, n, k);
}

// Memory of one that can, packed.
PW_EXPORT int64_t pw_compact_bytes(int64_t n, int64_t k) { return compact_bytes(n, k); }

// Packs it on the calling thread; others may pack others at the same time.
PW_EXPORT void pw_pack_compact(const void *weight, void *packed, int64_t n, int64_t k) {
  chosen->pack_compact(weight, packed, scratch(panel_bytes(k, kBFloat16)), n, k);
}

// Memory of an int8 weight [n, k], packed.
PW_EXPORT int64_t pw_int8_packed_bytes(int64_t n, int64_t k) { return int8_packed_bytes(n, k); }

// Memory of one row of x, quantized.
PW_EXPORT int64_t pw_int8_row_bytes(int64_t k) { return chosen->int8_row_bytes(k); }

// Quantizes and packs a weight on the calling thread; others may pack others at the same time.
PW_EXPORT void pw_pack_int8(const void *weight, void *packed, int64_t n, int64_t k, int32_t dtype) {
  chosen->pack_int8(weight, packed, n, k, dtype, 0, panels_of(n));
}

PW_EXPORT void pw_unpack_rows(const int64_t *ids, int64_t num_ids, const void *packed, void *out, int64_t k,
                              int32_t dtype) {
  unpack_rows(ids, num_ids, packed, out, k, dtype);
}

PW_EXPORT void pw_unpack_compact_rows(const int64_t *ids, int64_t num_ids, const void *packed, void *out, int64_t k) {
  unpack_compact_rows(ids, num_ids, packed, out, k);
}
