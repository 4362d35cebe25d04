// The library's own threads, and how work is spread over them. Its units of the baseline instruction set share it.

#pragma once

#include <cstdint>

namespace pagewire {

// Calls body(context, task, thread) once for every task in [0, tasks), in ascending order as threads become free, and
// returns when all are done; thread is below max_threads(). Called from one thread at a time.
void parallel(void (*body)(void *, int64_t, int), void *context, int64_t tasks, bool spread);

// Of the memory given to `read_ahead`, as much is read as stays in a core's second-level cache until it is needed.
constexpr int64_t kReadAheadBytes = 512 << 10;

// A thread that finds no more work in the next region reads kReadAheadBytes from here, until another region begins: what
// that one will read first. Null: nothing.
void read_ahead(const void *memory);

// Returns when no thread reads ahead any more.
void end_read_ahead();

// Threads that work, the caller's among them.
void set_threads(int threads);
int max_threads();

}  // namespace pagewire
