// What this machine can do, measured in a blink: for `kumquant doctor`.
#pragma once
#include <cstddef>

namespace kq {
// Bytes per second that `threads` threads read from a buffer of `bytes` (best of a few rounds).
double read_bandwidth(size_t bytes, int threads);
// Seconds of one cache-line round trip between two threads.
double core_round_trip();
}  // namespace kq
