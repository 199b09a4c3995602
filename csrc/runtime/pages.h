// Keys and values in pages, and the sequences that own them.
#pragma once
#include <memory>
#include <vector>

#include "kernels/kernels.h"
#include "runtime/sampler.h"
#include "runtime/spec.h"

namespace kq {

// Pages of keys and values for all layers. A page holds kPageTokens tokens.
class PagePool {
 public:
  PagePool(const DecoderSpec& spec, int num_pages, KvNumber number);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  int num_pages() const { return num_pages_; }
  size_t page_bytes() const { return page_bytes_; }
  // Whether pages are laid out as a model of this spec needs them.
  bool fits(const DecoderSpec& spec) const;
  KvHead head(const DecoderSpec& spec, int layer, int kv_head, const int32_t* pages) const;
  size_t token_bytes() const { return (key_bytes_ + value_bytes_ + scale_bytes_) / kPageTokens; }  // of one head
  // Asks for the keys and values of tokens [begin, end), into the second cache.
  void fetch(const KvHead& kv, int begin, int end) const;

 private:
  uint8_t* base_ = nullptr;
  size_t size_ = 0, page_bytes_ = 0;
  size_t key_bytes_ = 0, value_bytes_ = 0, scale_bytes_ = 0;  // of one head in a page
  int num_pages_, num_heads_;  // key/value heads of all kept layers
  KvNumber number_;
};

struct Sequence {
  std::vector<int32_t> pages;
  int length = 0;  // tokens whose keys and values are in the pages
  std::unique_ptr<Sampler> sampler;
  std::vector<int32_t> end_ids;  // tokens after which nobody wants another
  // Frequencies for a rope that depends on the sequence's length; empty: the model's own.
  std::vector<float> inverse_frequencies;
  float rope_factor = 1.0f;
};
}  // namespace kq
