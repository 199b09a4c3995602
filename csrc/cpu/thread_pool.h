// A persistent pool: one job at a time runs on every thread, the caller included, with barriers inside the job.
//
// Threads spin briefly between jobs and at barriers (a decode step has dozens of barriers of well under a microsecond of
// work), then yield, then sleep, so an idle pool costs nothing and an oversubscribed machine still moves. One that shares a
// processor with a thread it waits for does so at once.
#pragma once
#include <algorithm>
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
  // Called by every thread of a running job. Everything written before it is seen after it.
  void barrier(int thread);

 private:
  void work(int index);
  bool shares_processor(int other) const;
  void stop();

  const int threads_;
  const int spins_;
  const std::function<void(int)>* job_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> running_{0};
  std::atomic<bool> stop_{false};
  // How many barriers a thread has come to, in a cache line of its own: the others read it, and nobody else writes it, so the last
  // one's arrival is a single transfer between cores. Of more than a few threads the first alone reads all and lets the others go.
  struct alignas(64) Arrival {
    std::atomic<uint32_t> barriers{0};
    std::atomic<int> processor{-1};  // on which it came there
  };
  std::unique_ptr<Arrival[]> arrivals_;
  alignas(64) std::atomic<uint32_t> passed_{0};  // barriers that the first thread has let the others pass
  std::vector<std::thread> workers_;
};

// Hands out chunks of a range: each thread walks a part of its own, one straight run that hardware prefetchers can follow
// and no other core's cache line is needed for, and then helps the others with theirs. Results never depend on who computes
// what.
class Claims {
 public:
  explicit Claims(int threads) : next_(std::make_unique<Next[]>(threads)), threads_(threads) {}
  // A thread's own part, for another round; with a barrier between this and the others' next take().
  void reset(int thread) { next_[thread].at.store(0, std::memory_order_relaxed); }
  // The first item that take() gives to a thread.
  int first(int thread, int total, int chunk) const { return share((total + chunk - 1) / chunk, thread) * chunk; }
  // Next [begin, end) of `total` items in chunks of `chunk`; false when none are left. Chunks start at multiples of `chunk`.
  bool take(int thread, int total, int chunk, int* begin, int* end) {
    return take_some(thread, total, chunk, begin, end, [](int) { return 1; });
  }
  // The same, half of what is left of a part at a time: fewer claims, each of which waits until the thread's stores have
  // reached its cache, and still something left for others to help with.
  bool take_half(int thread, int total, int chunk, int* begin, int* end) {
    return take_some(thread, total, chunk, begin, end, [](int left) { return (left + 1) / 2; });
  }

 private:
  struct alignas(64) Next {
    std::atomic<int> at{0};
  };
  // size(left): chunks to claim of those that are left of a part.
  template <class Size>
  bool take_some(int thread, int total, int chunk, int* begin, int* end, Size size) {
    const int chunks = (total + chunk - 1) / chunk;
    for (int i = 0; i < threads_; i++) {
      const int owner = thread + i < threads_ ? thread + i : thread + i - threads_;
      const int first = share(chunks, owner), last = share(chunks, owner + 1);
      std::atomic<int>& next = next_[owner].at;
      const int left = last - first - next.load(std::memory_order_relaxed);
      if (left <= 0) continue;
      const int count = size(left), c = first + next.fetch_add(count, std::memory_order_relaxed);
      if (c >= last) continue;
      *begin = c * chunk;
      *end = std::min(std::min(c + count, last) * chunk, total);
      return true;
    }
    return false;
  }
  int share(int chunks, int thread) const { return (int)((int64_t)chunks * thread / threads_); }

  std::unique_ptr<Next[]> next_;
  int threads_;
};
}  // namespace kq
