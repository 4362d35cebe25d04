// What the units at the baseline instruction set share: the chosen kernels and how work is spread over threads.

#pragma once

#include <cstdint>

#include "kernels.h"

namespace pagewire {

const Kernels *kernels();

// Calls body(context, task, thread) once for every task in [0, tasks), on up to `threads` threads; returns when all
// are done. A thread takes the next task whenever it is free, so a thread that is held up holds up one task.
void parallel(void (*body)(void *, int64_t, int), void *context, int64_t tasks, int threads);

int max_threads();

}  // namespace pagewire
