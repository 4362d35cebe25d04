// Keeps calls and replays them; capture.h says what for.

#include "capture.h"

#include <cstring>

#include "thread_pool.h"

namespace pagewire {

namespace {

struct Capture {
  Call *calls;
  int64_t capacity;
  int64_t count;
};

Capture capture{};

}  // namespace

void note(void (*run)(const void *), const void *args, size_t bytes, Weight weight) {
  if (!capture.calls) return;
  if (capture.count < capture.capacity) {
    Call *call = capture.calls + capture.count;
    call->run = run;
    call->weight = weight;
    std::memcpy(call->args, args, bytes);
  }
  ++capture.count;
}

void begin_capture(Call *calls, int64_t capacity) { capture = {calls, capacity, 0}; }

int64_t end_capture() {
  const int64_t count = capture.count;
  Weight next{};
  for (int64_t i = (count < capture.capacity ? count : capture.capacity) - 1; i >= 0; --i) {
    Call *call = capture.calls + i;
    call->next_weight = next.bytes < kReadAheadBytes ? nullptr : next.memory;
    if (call->weight.memory) next = call->weight;
  }
  capture = {};
  return count;
}

void replay(const Call *calls, int64_t count) {
  for (const Call *call = calls; call < calls + count; ++call) {
    if (call->weight.memory) read_ahead(call->next_weight);
    call->run(call->args);
  }
  end_read_ahead();
}

}  // namespace pagewire
