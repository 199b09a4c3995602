// Asking for cache lines before they are needed.
#pragma once
#include <stddef.h>

namespace kq {

// Into the second cache.
inline void prefetch_near(const void* from, size_t bytes) {
  const char* p = static_cast<const char*>(from);
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

// To be written: another core gives up its copy now, not when the store has to wait for it.
inline void prefetch_write(const void* from, size_t bytes) {
  const char* p = static_cast<const char*>(from);
  for (size_t i = 0; i < bytes; i += 64) {
#if defined(__x86_64__)
    __asm__ volatile("prefetchw %0" : : "m"(p[i]));  // a processor without it takes it for no operation
#else
    __builtin_prefetch(p + i, 1, 3);
#endif
  }
}
}  // namespace kq
