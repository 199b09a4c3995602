// From a tensor cache's row-major records to panels (layout: kernels/kernels.h).
#pragma once
#include "cpu/thread_pool.h"
#include "kernels/kernels.h"
#include "runtime/arena.h"

namespace kq {

// A group-quantized matrix as stored: codes (rows, words) uint32, eight 4-bit codes a word; scales (rows, words / 4).
struct QuantizedRows {
  const uint32_t* codes;
  const uint8_t* scales;
  Number scale_number;
  int rows, inputs, words;
};
// A plain matrix as stored: (rows, inputs).
struct PlainRows {
  const uint8_t* values;
  Number number;
  int rows, inputs;
};

// gated: rows are two stacked halves (gate, up) whose panels alternate. release: source pages are given back to the
// system as they are consumed (they must be a read-only file mapping).
Panels pack(const QuantizedRows& source, bool gated, bool release, Arena& arena, ThreadPool& pool);
Panels pack(const PlainRows& source, bool gated, bool release, Arena& arena, ThreadPool& pool);

// One row of a matrix, as float32: exact products (code - 7) * scale.
void read_row(const Panels& panels, int row, float* y);
void read_row(const QuantizedRows& source, int row, float* y);
void read_row(const PlainRows& source, int row, float* y);
}  // namespace kq
