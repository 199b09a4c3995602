#include "cpu/probe.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>

#include "cpu/thread_pool.h"
#include "runtime/arena.h"

namespace kq {
static double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double read_bandwidth(size_t bytes, int threads) {
  Arena arena;
  bytes = bytes / 4096 * 4096;
  uint8_t* data = arena.allocate(bytes);
  ThreadPool pool(threads);
  const size_t share = bytes / threads / 4096 * 4096;
  std::atomic<uint64_t> sink{0};
  double best = 0.0;
  auto sweep = [&](int thread) {
    uint64_t lanes[32] = {};
    const uint8_t* p = data + thread * share;
    for (size_t i = 0; i < share; i += 256) {
      uint64_t words[32];
      std::memcpy(words, p + i, 256);
      for (int j = 0; j < 32; j++) lanes[j] ^= words[j];
    }
    uint64_t all = 0;
    for (uint64_t lane : lanes) all ^= lane;
    sink ^= all;
  };
  pool.run([&](int thread) { std::memset(data + thread * share, thread + 1, share); });
  for (int round = 0; round < 5; round++) {
    const int repeats = 1 + (int)(((size_t)256 << 20) / (bytes + 1));
    const double start = now();
    for (int i = 0; i < repeats; i++) pool.run(sweep);
    const double rate = (double)share * threads * repeats / (now() - start);
    best = rate > best ? rate : best;
  }
  return best;
}

double core_round_trip() {
  constexpr int kRounds = 20000;
  alignas(64) std::atomic<int> ball{0};
  std::thread other([&] {
    for (int i = 0; i < kRounds; i++) {
      while (ball.load(std::memory_order_acquire) != 2 * i + 1) {
      }
      ball.store(2 * i + 2, std::memory_order_release);
    }
  });
  double start = 0.0;
  for (int i = 0; i < kRounds; i++) {
    if (i == kRounds / 10) start = now();
    ball.store(2 * i + 1, std::memory_order_release);
    while (ball.load(std::memory_order_acquire) != 2 * i + 2) {
    }
  }
  const double seconds = now() - start;
  other.join();
  return seconds / (kRounds - kRounds / 10);
}
}  // namespace kq
