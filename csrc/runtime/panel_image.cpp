#include "runtime/panel_image.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "runtime/arena.h"

namespace kq {
namespace {
constexpr size_t kReadSlice = (size_t)2 << 20, kMapSlice = (size_t)32 << 20;

// Calls f(begin, end) on the pool's threads for slices of [0, total).
template <class F>
void over_slices(ThreadPool& pool, size_t total, size_t slice, F f) {
  Claims claims(pool.size());
  const int count = (int)((total + slice - 1) / slice);
  pool.run([&](int thread) {
    int begin, end;
    while (claims.take(thread, count, 1, &begin, &end)) f((size_t)begin * slice, std::min(total, (size_t)end * slice));
  });
}

bool read_fully(int file, uint8_t* to, size_t begin, size_t end) {
  while (begin < end) {
    const ssize_t count = pread(file, to + begin, end - begin, (off_t)begin);
    if (count <= 0) return false;
    begin += (size_t)count;
  }
  return true;
}

void advise(void* begin, size_t bytes, int advice) { (void)!madvise(begin, bytes, advice); }  // a hint: nothing depends on it
}  // namespace

PanelImage::PanelImage(int file, size_t offset, size_t bytes, bool copy, ThreadPool& pool) : offset_(offset), bytes_(bytes) {
  const size_t total = offset + bytes + kSlack;
  // Huge pages need addresses and file offsets that agree modulo their size.
  reserved_bytes_ = (total + kHuge - 1) / kHuge * kHuge + kHuge;
  reserved_ = mmap(nullptr, reserved_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved_ == MAP_FAILED) throw std::runtime_error("no address space for the panels");
  base_ = (uint8_t*)(((uintptr_t)reserved_ + kHuge - 1) / kHuge * kHuge);
  try {
    copy ? read(file, total, pool) : map(file, total, pool);
  } catch (...) {
    watched_.reset();
    munmap(reserved_, reserved_bytes_);
    throw;
  }
}

PanelImage::~PanelImage() {
  watched_.reset();
  munmap(reserved_, reserved_bytes_);
}

void PanelImage::read(int file, size_t total, ThreadPool& pool) {
  if (mprotect(base_, (total + kHuge - 1) / kHuge * kHuge, PROT_READ | PROT_WRITE)) throw std::runtime_error("no memory for the panels");
#ifdef MADV_HUGEPAGE
  advise(base_, (total + kHuge - 1) / kHuge * kHuge, MADV_HUGEPAGE);
#endif
  std::atomic<bool> whole{true};
  over_slices(pool, total, kReadSlice, [&](size_t begin, size_t end) {
    if (!read_fully(file, base_, begin, end)) whole = false;
  });
  if (!whole) throw std::runtime_error("the panels file is shorter than it says, or cannot be read");
}

void PanelImage::map(int file, size_t total, ThreadPool& pool) {
  if (mmap(base_, total, PROT_READ, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED)
    throw std::runtime_error("the panels file cannot be mapped");
  watched_.emplace(base_, (total + 4095) / 4096 * 4096);
#ifdef MADV_HUGEPAGE
  advise(base_, total, MADV_HUGEPAGE);  // what has to be read from the disk comes in huge pages, where the file system has them
#endif
#ifdef MADV_POPULATE_READ
  over_slices(pool, total, kMapSlice, [&](size_t begin, size_t end) { advise(base_ + begin, end - begin, MADV_POPULATE_READ); });
#else
  advise(base_, total, MADV_WILLNEED);
  (void)pool;
#endif
}
}  // namespace kq
