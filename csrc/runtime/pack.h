// From a tensor cache's records to panels (layout: kernels/kernels.h).
#pragma once
#include <vector>

#include "cpu/thread_pool.h"
#include "kernels/kernels.h"
#include "runtime/arena.h"

namespace kq {

// Version of what `pack` writes, and of the order in which a model's matrices come (runtime/loader.py). Raise it with any change:
// panels are kept in files (docs/native-core.md).
constexpr int kPanelLayout = 2;

// How the codes of a record are laid out.
enum class CodeLayout : int {
  rows = 0,     // (rows, words): 32-bit words of 8 (4-bit), 10 (3-bit) or 4 (8-bit) codes, the first in the low bits; scales (rows, groups)
  columns = 1,  // the transpose: words (words, rows), scales (groups, rows)
  awq = 2,      // (inputs, rows / 8): AWQ's order of nibbles; zeros (inputs / 128, rows / 8), scales (inputs / 128, rows)
};

// A group-quantized matrix as stored: value = (code - zero point) * scale.
struct QuantizedRows {
  const uint8_t* codes;
  const uint8_t* scales;
  Number scale_number;
  int rows, inputs;
  int bits = 4, group = kGroup;
  CodeLayout layout = CodeLayout::rows;
  const uint8_t* zeros = nullptr;  // awq only

  int groups() const { return (inputs + group - 1) / group; }
  int codes_per_word() const { return 32 / bits; }
  int words() const { return groups() * group / codes_per_word(); }
  int zero_point() const { return (1 << (bits - 1)) - 1; }
};
// A plain matrix as stored: (rows, inputs).
struct PlainRows {
  const uint8_t* values;
  Number number;
  int rows, inputs;
};

// How the rows of a matrix become panels.
struct RowOrder {
  bool gated = false;  // two halves (gate, up) whose panels alternate
  // Not 0: queries, keys and values one below the other become, kv head by kv head, its queries, its key, its value.
  // q_rows, kv_rows: rows of one kv head's queries, and of its key; whole panels.
  int kv_heads = 0, q_rows = 0, kv_rows = 0;

  int head_rows() const { return q_rows + 2 * kv_rows; }
};

// Parts are stacked along the rows. release: source pages are given back to the system as they are consumed, or all at the end where
// rows come in another order (they must be a read-only file mapping). Sources are not touched when the arena is filled already.
// Throws std::invalid_argument when the parts do not fit together or no kernel knows their layout.
Panels pack(const std::vector<QuantizedRows>& parts, const RowOrder& order, bool release, Arena& arena, ThreadPool& pool,
            const Kernels& kernels);
Panels pack(const std::vector<PlainRows>& parts, const RowOrder& order, bool release, Arena& arena, ThreadPool& pool);

// One row of a matrix, as float32: exact products (code - zero point) * scale. Of panels: in their order.
void read_row(const Panels& panels, int row, float* y);
void read_row(const QuantizedRows& source, int row, float* y);
void read_row(const PlainRows& source, int row, float* y);
}  // namespace kq
