// Mapped files that another process may cut short. Touching a page that its file no longer has ends a process (SIGBUS);
// inside a watched range it reads as zeros instead, and is noted.
#pragma once
#include <cstddef>

namespace kq {

class WatchedRange {
 public:
  // A page-aligned mapping. Unwatched, hence as unsafe as any mapping, when very many are watched already.
  WatchedRange(void* begin, size_t bytes);
  ~WatchedRange();
  WatchedRange(const WatchedRange&) = delete;
  WatchedRange& operator=(const WatchedRange&) = delete;
  // Whether some of it was touched that the file no longer had.
  bool lost() const;

 private:
  int slot_ = -1;
};
}  // namespace kq
