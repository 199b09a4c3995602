#include "runtime/pages.h"

#include <sys/mman.h>

#include <new>

#include "cpu/prefetch.h"

namespace kq {
namespace {
constexpr size_t kHugeFrom = 128 << 10;  // bytes of a page

// An encoder reads a layer's keys and values within the step that writes them: one layer's room serves all.
int kept_layers(const DecoderSpec& spec) { return spec.causal ? spec.num_layers : 1; }

size_t key_bytes(const DecoderSpec& spec, KvNumber number) {
  return (size_t)kPageTokens * (number == KvNumber::i8 ? quad_dim(spec.head_dim) : spec.head_dim) * size_of(number);
}
}  // namespace

PagePool::PagePool(const DecoderSpec& spec, int num_pages, KvNumber number)
    : num_pages_(num_pages), num_heads_(spec.num_kv_heads * kept_layers(spec)), number_(number) {
  key_bytes_ = key_bytes(spec, number);
  value_bytes_ = (size_t)kPageTokens * spec.padded_head_dim() * size_of(number);
  scale_bytes_ = number == KvNumber::i8 ? (size_t)2 * kPageTokens * sizeof(uint16_t) : 0;
  page_bytes_ = (key_bytes_ + value_bytes_ + scale_bytes_) * num_heads_;
  page_bytes_ = (page_bytes_ + 63) / 64 * 64;
  size_ = page_bytes_ * (size_t)num_pages + 4096;
  // Pages become resident when first written; zeroed memory keeps unseen values finite (their weight is 0).
  void* base = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<uint8_t*>(base);
#ifdef MADV_HUGEPAGE
  // A head's tokens lie a page apart: with 4 KiB of memory at a time, most of a long context's reads miss the TLB. Small
  // models would rather have the memory.
  if (page_bytes_ >= kHugeFrom) madvise(base_, size_, MADV_HUGEPAGE);
#endif
}

PagePool::~PagePool() { munmap(base_, size_); }

bool PagePool::fits(const DecoderSpec& spec) const {
  return num_heads_ == spec.num_kv_heads * kept_layers(spec) && key_bytes_ == key_bytes(spec, number_);
}

KvHead PagePool::head(const DecoderSpec& spec, int layer, int kv_head, const int32_t* pages) const {
  const size_t at = ((size_t)(layer % kept_layers(spec)) * spec.num_kv_heads + kv_head) * (key_bytes_ + value_bytes_ + scale_bytes_);
  return {base_, page_bytes_, pages, at, at + key_bytes_, at + key_bytes_ + value_bytes_, spec.head_dim, spec.padded_head_dim(), number_};
}

void PagePool::fetch(const KvHead& kv, int begin, int end) const {
  const size_t lane_bytes = key_bytes_ / kPageTokens * kLaneTokens, value_bytes = value_bytes_ / kPageTokens;
  for (int t = begin / kLaneTokens * kLaneTokens; t < end; t += kLaneTokens) {
    const uint8_t* page = kv.pool + (size_t)kv.pages[t / kPageTokens] * kv.page_bytes;
    const int at = t % kPageTokens;
    prefetch_near(page + kv.key_offset + at / kLaneTokens * lane_bytes, lane_bytes);
    prefetch_near(page + kv.value_offset + at * value_bytes, kLaneTokens * value_bytes);
    if (at == 0 || t <= begin) prefetch_near(page + kv.scale_offset, scale_bytes_);
  }
}
}  // namespace kq
