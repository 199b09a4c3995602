#include "cpu/thread_pool.h"

#include <algorithm>
#ifdef __linux__
#include <sched.h>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
static inline void relax() { _mm_pause(); }
#elif defined(__aarch64__)
// YIELD does nothing on most cores; a barrier takes about as long as a pause of x86-64.
static inline void relax() { __asm__ volatile("isb" ::: "memory"); }
#else
static inline void relax() {}
#endif

namespace kq {

// Pauses of some ten nanoseconds each. A yield hands a whole time slice (milliseconds) to whatever else runs, a thousand
// times the length of a phase, so with a processor for every thread there are none for about a millisecond. The one that is
// waited for may need this very processor: with more threads than processors, and where the system has put two on one, as it
// does while other programs are busy.
constexpr int kSpins = 100000;
constexpr int kSpinsCrowded = 200;
// Between jobs: long enough for the caller to prepare the next step of a generation, then sleep.
constexpr int kIdleSpins = 20000;
// Threads that all read each other's arrivals.
constexpr int kDirectThreads = 4;

static int usable_processors() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return (int)std::thread::hardware_concurrency();
}

static int this_processor() {
#ifdef __linux__
  return sched_getcpu();
#else
  return -1;
#endif
}

// in_the_way: whether this thread keeps one that it waits for from running.
template <class Done, class InTheWay>
static void spin_until(int spins, Done done, InTheWay in_the_way) {
  for (int i = 1;; i++) {
    if (done()) return;
    if (i < spins && (i % kSpinsCrowded || !in_the_way()))
      relax();
    else
      std::this_thread::yield();
  }
}

ThreadPool::ThreadPool(int threads)
    : threads_(threads < 1 ? 1 : threads), spins_(threads_ <= usable_processors() ? kSpins : kSpinsCrowded),
      arrivals_(std::make_unique<Arrival[]>(threads_)) {
  try {
    for (int i = 1; i < threads_; i++) workers_.emplace_back([this, i] { work(i); });
  } catch (...) {  // joinable threads in a vector that is destroyed would end the process
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stop_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(const std::function<void(int)>& job) {
  if (threads_ == 1) return job(0);
  job_ = &job;
  running_.store(threads_ - 1, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  job(0);
  spin_until(spins_, [this] { return running_.load(std::memory_order_acquire) == 0; }, [this] {
    for (int i = 1; i < threads_; i++)
      if (shares_processor(i)) return true;
    return false;
  });
}

// Whether a thread was last seen on the processor of the calling one.
bool ThreadPool::shares_processor(int other) const {
  const int here = this_processor();
  return here >= 0 && arrivals_[other].processor.load(std::memory_order_relaxed) == here;
}

void ThreadPool::barrier(int thread) {
  if (threads_ == 1) return;
  const uint32_t now = arrivals_[thread].barriers.load(std::memory_order_relaxed) + 1;
  arrivals_[thread].processor.store(this_processor(), std::memory_order_relaxed);
  arrivals_[thread].barriers.store(now, std::memory_order_release);
  auto has_come = [&](const std::atomic<uint32_t>& count) {  // may be at the next barrier already
    return (int32_t)(count.load(std::memory_order_acquire) - now) >= 0;
  };
  if (threads_ > kDirectThreads && thread) {
    spin_until(spins_, [&] { return has_come(passed_); }, [&] {
      for (int i = 0; i < threads_; i++)
        if (i != thread && (i == 0 || !has_come(arrivals_[i].barriers)) && shares_processor(i)) return true;
      return false;
    });
    return;
  }
  for (int i = 0; i < threads_; i++)
    if (i != thread) spin_until(spins_, [&] { return has_come(arrivals_[i].barriers); }, [&] { return shares_processor(i); });
  if (threads_ > kDirectThreads) passed_.store(now, std::memory_order_release);
}

void ThreadPool::work(int index) {
  uint32_t seen = 0;
  for (;;) {
    for (int i = 1; generation_.load(std::memory_order_acquire) == seen; i++) {
      if (i < std::min(spins_, kIdleSpins) && (i % kSpinsCrowded || !shares_processor(0)))
        relax();
      else
        generation_.wait(seen, std::memory_order_acquire);
    }
    seen++;
    if (stop_.load(std::memory_order_relaxed)) return;
    (*job_)(index);
    running_.fetch_sub(1, std::memory_order_release);
  }
}
}  // namespace kq
