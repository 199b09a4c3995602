#include "cpu/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
static inline void relax() { _mm_pause(); }
#else
static inline void relax() {}
#endif

namespace kq {

// About 50 microseconds of pauses before yielding, and a few dozen yields before sleeping.
constexpr int kSpins = 2000;
constexpr int kYields = 50;

template <class Done>
static void spin_until(Done done) {
  for (int i = 0;; i++) {
    if (done()) return;
    if (i < kSpins)
      relax();
    else
      std::this_thread::yield();
  }
}

ThreadPool::ThreadPool(int threads) : threads_(threads < 1 ? 1 : threads) {
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
  spin_until([this] { return running_.load(std::memory_order_acquire) == 0; });
}

void ThreadPool::barrier() {
  if (threads_ == 1) return;
  const uint32_t epoch = epoch_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    epoch_.store(epoch + 1, std::memory_order_release);
    return;
  }
  spin_until([this, epoch] { return epoch_.load(std::memory_order_acquire) != epoch; });
}

void ThreadPool::work(int index) {
  uint32_t seen = 0;
  for (;;) {
    for (int i = 0; generation_.load(std::memory_order_acquire) == seen; i++) {
      if (i < kSpins)
        relax();
      else if (i < kSpins + kYields)
        std::this_thread::yield();
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
