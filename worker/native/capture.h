// A step's calls, kept so that the same step can run again without a caller between its kernels.
//
// A call is kept with its arguments, which are addresses and sizes. Whoever replays it answers for them: that they are
// still those of the step, and that the memory is there. While calls are replayed it is known which weight comes next,
// and threads without work read its beginning (thread_pool.h).

#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace pagewire {

constexpr size_t kMaxArgsBytes = 160;

// A linear's, packed.
struct Weight {
  const void *memory;
  int64_t bytes;
};

struct Call {
  void (*run)(const void *args);
  Weight weight;            // none where the call is no linear
  const void *next_weight;  // of the next linear; null where that is too small to be read ahead
  alignas(8) char args[kMaxArgsBytes];
};

// Keeps a call if a capture is under way.
void note(void (*run)(const void *), const void *args, size_t bytes, Weight weight);

// Runs a call, and keeps it if a capture is under way.
template <class Args, void (*kRun)(const Args *)>
void issue(const Args *args, Weight weight = {}) {
  static_assert(sizeof(Args) <= kMaxArgsBytes && std::is_trivially_copyable_v<Args>, "kept as bytes");
  note([](const void *kept) { kRun(static_cast<const Args *>(kept)); }, args, sizeof *args, weight);
  kRun(args);
}

// Keeps the calls that follow, in memory for `capacity` of them.
void begin_capture(Call *calls, int64_t capacity);

// Returns how many calls came since; they were kept if that is no more than the capacity.
int64_t end_capture();

void replay(const Call *calls, int64_t count);

}  // namespace pagewire
