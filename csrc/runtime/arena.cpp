#include "runtime/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <stdexcept>

namespace kq {
// Large chunks: the last huge page of each is only partly used. Small ones where the system does not give so much address space.
constexpr size_t kChunks[] = {(size_t)512 << 20, (size_t)64 << 20};

Arena::~Arena() {
  for (Chunk& c : chunks_) munmap(c.base, c.size);
}

uint8_t* Arena::allocate(size_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  if (image_) {
    if (bytes > image_->size() - image_used_) throw std::runtime_error("the panels file holds less than the model");
    uint8_t* filled = const_cast<uint8_t*>(image_->data()) + image_used_;  // nobody writes into an arena that is filled
    image_used_ += bytes;
    return filled;
  }
  if (chunks_.empty() || chunks_.back().used + bytes + kSlack > chunks_.back().size) {
    size_t size = 0;
    void* base = MAP_FAILED;
    for (size_t chunk : kChunks) {
      if (base != MAP_FAILED) break;
      size = (std::max(bytes + kSlack, chunk) + kHuge - 1) / kHuge * kHuge;
      // Only touched pages become resident, so a mostly empty last chunk costs address space alone.
      base = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    if (base == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(base, size, MADV_HUGEPAGE);
#endif
    chunks_.push_back({static_cast<uint8_t*>(base), size, 0});
  }
  Chunk& c = chunks_.back();
  uint8_t* p = c.base + c.used;
  c.used += bytes;
  return p;
}

std::vector<std::pair<const uint8_t*, size_t>> Arena::runs() const {
  if (image_) return {{image_->data(), image_used_}};
  std::vector<std::pair<const uint8_t*, size_t>> runs;
  for (const Chunk& c : chunks_) runs.push_back({c.base, c.used});
  return runs;
}

size_t Arena::used() const {
  size_t sum = 0;
  for (const auto& [data, bytes] : runs()) sum += bytes;
  return sum;
}

void Arena::note_layout(uint64_t fact) {  // FNV-1a
  for (int i = 0; i < 8; i++) layout_ = (layout_ ^ (fact >> (8 * i) & 255)) * 0x100000001B3;
}

namespace {
// Not thread-local: a library's thread-local data is itself allocated at first use, which ends the process when it fails.
std::atomic<int> jobs{0};
std::atomic<long> late_growths_count{0};
}  // namespace

Scratch::NoGrowth::NoGrowth() { jobs.fetch_add(1); }
Scratch::NoGrowth::~NoGrowth() { jobs.fetch_sub(1); }
long Scratch::late_growths() { return late_growths_count.load(); }

Scratch::~Scratch() { std::free(data_); }

void* Scratch::reserve(size_t bytes) {
  if (bytes > size_) {
    if (jobs.load(std::memory_order_relaxed)) late_growths_count.fetch_add(1);
    std::free(data_);
    size_ = (bytes + bytes / 4 + 63) / 64 * 64;
    data_ = std::aligned_alloc(64, size_);
    if (!data_) {
      size_ = 0;
      throw std::bad_alloc();
    }
  }
  return data_;
}
}  // namespace kq
