// Keeps calls and repeats them; recording.h says what for.

#include "recording.h"

#include <cstring>

#include "thread_pool.h"

namespace pagewire {

namespace {

struct Recording {
  Call *calls;
  int64_t capacity;
  int64_t count;
};

Recording recording{};

}  // namespace

void note(void (*run)(const void *), const void *args, size_t bytes, Weight weight) {
  if (!recording.calls) return;
  if (recording.count < recording.capacity) {
    Call *call = recording.calls + recording.count;
    call->run = run;
    call->weight = weight;
    std::memcpy(call->args, args, bytes);
  }
  ++recording.count;
}

void begin_recording(Call *calls, int64_t capacity) { recording = {calls, capacity, 0}; }

int64_t end_recording() {
  const int64_t count = recording.count;
  Weight next{};
  for (int64_t i = (count < recording.capacity ? count : recording.capacity) - 1; i >= 0; --i) {
    Call *call = recording.calls + i;
    call->next_weight = next.bytes < kReadAheadBytes ? nullptr : next.memory;
    if (call->weight.memory) next = call->weight;
  }
  recording = {};
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
