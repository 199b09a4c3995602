// A persistent pool: one job at a time runs on every thread, the caller included, with barriers inside the job.
//
// Threads spin briefly between jobs and at barriers (a decode step has dozens of barriers of well under a microsecond of
// work), then yield, then sleep, so an idle pool costs nothing and an oversubscribed machine still moves.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace kq {

class ThreadPool {
 public:
  // Throws std::system_error when the system refuses a thread; those already started are ended first.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return threads_; }
  // Runs job(thread index) on all threads; returns when all are done. Not reentrant. The job must not throw.
  void run(const std::function<void(int)>& job);
  // Called by every thread of a running job.
  void barrier();

 private:
  void work(int index);
  void stop();

  const int threads_;
  const int spins_;
  const std::function<void(int)>* job_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> epoch_{0};
  alignas(64) std::atomic<int> running_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

// Hands out chunks of a range to whichever thread is free. Results never depend on who computes what.
class Claims {
 public:
  void reset() { next_.store(0, std::memory_order_relaxed); }
  // Next [begin, end) of `total` items in chunks of `chunk`; false when none are left.
  bool take(int total, int chunk, int* begin, int* end) {
    int b = next_.fetch_add(chunk, std::memory_order_relaxed);
    if (b >= total) return false;
    *begin = b;
    *end = b + chunk < total ? b + chunk : total;
    return true;
  }

 private:
  alignas(64) std::atomic<int> next_{0};
};
}  // namespace kq
