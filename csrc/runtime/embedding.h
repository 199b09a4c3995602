// A matrix whose rows are looked up one at a time: by token, by position.
#pragma once
#include <cstdint>
#include <string>

#include "runtime/arena.h"
#include "runtime/pack.h"

namespace kq {

// Rows looked up by token or position: a mapped record, or the head's own panels when they are tied.
// With a file the rows are read from it instead of touched in the mapping, where every row would make 64 KiB of
// neighbors resident (the kernel maps around a fault).
struct Embedding {
  enum class Source { none, panels, quantized, plain } source = Source::none;
  const Panels* panels = nullptr;
  QuantizedRows quantized{};
  PlainRows plain{};
  int file = -1;
  int64_t codes_at = 0, scales_at = 0;  // byte offsets of the record (plain: codes_at) in the file

  Embedding() = default;
  ~Embedding();
  Embedding(const Embedding&) = delete;
  Embedding& operator=(const Embedding&) = delete;
  // Stays with the mapping if the file cannot be opened.
  void open_file(const std::string& path, int64_t codes, int64_t scales);
  // False when the file no longer holds the row; y is then zeros. (Touching the mapping instead would end the process.)
  // bytes: room for row_bytes().
  bool read(int row, float* y, Scratch& bytes) const;
  int rows() const;
  int inputs() const;  // values of a row
  size_t row_bytes() const;  // that a row takes in the file; 0 without one

 private:
  bool read_from_file(int row, float* y, uint8_t* bytes) const;
};
}  // namespace kq
