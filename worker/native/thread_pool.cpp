// A pool whose regions never wait for a thread that has not begun.
//
// An OpenMP region ends when its last thread has arrived, whether or not there was work left for it; where another
// process has that thread's core, every region lasts as long as a time slice. Here a thread takes a task by counting
// down one word, and the caller waits for tasks that were taken, so that a thread which is not running is not missed:
// the others do its share. What can still be waited for is one task whose thread lost its core in the middle of it.
//
// Between regions a thread looks for work for a short while, giving way to any other thread on its core, and then
// sleeps: a step's regions follow each other within microseconds, and a worker without plans must leave its cores alone.

#include "thread_pool.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <chrono>
#include <thread>

namespace pagewire {

namespace {

constexpr int64_t kLookForWorkUs = 300;
constexpr int64_t kLookForEndUs = 50;

struct Region {
  void (*body)(void *, int64_t, int);
  void *context;
  uint32_t tasks;
};

std::atomic<int> num_threads{1};
int num_started = 1;  // threads are never ended; those that are too many sleep

Region region;
// The region's number, and below it how many of its tasks nobody has taken. A number that changes in between makes a
// late thread's exchange fail, so `region` is only read by who has a task of it.
std::atomic<uint64_t> tickets{0};
std::atomic<uint32_t> finished{0};   // of the region's tasks
std::atomic<uint32_t> published{0};  // low half of the region's number, for sleepers
std::atomic<int> sleepers{0};
std::atomic<bool> caller_sleeps{false};
std::atomic<const char *> ahead{nullptr};
std::atomic<int> readers{0};

static_assert(sizeof(std::atomic<uint32_t>) == 4, "a futex is four bytes");

void futex_wait(std::atomic<uint32_t> *word, uint32_t while_it_is) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, while_it_is, nullptr, nullptr, 0);
}

void futex_wake(std::atomic<uint32_t> *word, int threads) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, threads, nullptr, nullptr, 0);
}

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether `done` came true within a time. Others on this core go first.
template <class Condition>
bool look_for(const Condition &done, int64_t us) {
  for (int i = 0; i < 64; ++i) {
    if (done()) return true;
    relax();
  }
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(us);
  do {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      relax();
    }
    sched_yield();
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

void take_tasks(int thread) {
  uint64_t seen = tickets.load(std::memory_order_acquire);
  while (uint32_t(seen)) {
    if (!tickets.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
    const Region mine = region;
    mine.body(mine.context, mine.tasks - uint32_t(seen), thread);
    // The caller may go on, and publish another region, as soon as the last task counts as finished.
    if (finished.fetch_add(1, std::memory_order_seq_cst) + 1 == mine.tasks &&
        caller_sleeps.load(std::memory_order_seq_cst))
      futex_wake(&finished, 1);
    seen = tickets.load(std::memory_order_acquire);
  }
}

// Loads, because a processor that is busy with memory drops prefetches: of 512 KB asked for in a row hardly any came.
void read_ahead_until_region_after(uint32_t last) {
  constexpr int64_t kPiece = 1024;
  readers.fetch_add(1, std::memory_order_seq_cst);
  if (const volatile char *memory = ahead.exchange(nullptr, std::memory_order_seq_cst))
    for (int64_t i = 0; i < kReadAheadBytes && published.load(std::memory_order_acquire) == last; i += kPiece)
      for (int64_t line = i; line < i + kPiece; line += 64) (void)memory[line];
  readers.fetch_sub(1, std::memory_order_seq_cst);
}

void serve(int thread) {
  for (;;) {
    if (thread < num_threads.load(std::memory_order_relaxed)) take_tasks(thread);
    const uint32_t last = published.load(std::memory_order_acquire);
    if (ahead.load(std::memory_order_relaxed)) read_ahead_until_region_after(last);
    if (look_for([=] { return published.load(std::memory_order_acquire) != last; }, kLookForWorkUs)) continue;
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    futex_wait(&published, last);
    sleepers.fetch_sub(1, std::memory_order_seq_cst);
  }
}

}  // namespace

void set_threads(int threads) {
  for (; num_started < threads; ++num_started) std::thread(serve, num_started).detach();
  num_threads = threads;
}

int max_threads() { return num_threads; }

void read_ahead(const void *memory) { ahead.store(static_cast<const char *>(memory), std::memory_order_seq_cst); }

void end_read_ahead() {
  read_ahead(nullptr);
  while (readers.load(std::memory_order_seq_cst)) sched_yield();
}

void parallel(void (*body)(void *, int64_t, int), void *context, int64_t tasks, bool spread) {
  if (!spread || num_threads < 2 || tasks < 2) {
    for (int64_t task = 0; task < tasks; ++task) body(context, task, 0);
    return;
  }
  region = {body, context, uint32_t(tasks)};
  finished.store(0, std::memory_order_relaxed);
  const uint64_t number = (tickets.load(std::memory_order_relaxed) >> 32) + 1;
  tickets.store(number << 32 | uint32_t(tasks), std::memory_order_release);
  published.store(uint32_t(number), std::memory_order_seq_cst);
  if (sleepers.load(std::memory_order_seq_cst)) futex_wake(&published, INT_MAX);
  take_tasks(0);
  const auto done = [=] { return finished.load(std::memory_order_acquire) == uint32_t(tasks); };
  if (look_for(done, kLookForEndUs)) return;
  caller_sleeps.store(true, std::memory_order_seq_cst);
  for (uint32_t count; (count = finished.load(std::memory_order_seq_cst)) != uint32_t(tasks);)
    futex_wait(&finished, count);
  caller_sleeps.store(false, std::memory_order_relaxed);
}

}  // namespace pagewire
