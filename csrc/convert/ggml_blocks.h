// Blocks of ggml's quantized types: as the format's own codes (Q4_0), or as float32 values.
//
// Integers and single float32 operations only, so there is one version for every instruction set. Source: ggml's block structs;
// the plain twins are in tests/unit/test_gguf_rows.py and the gguf package.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace kq {

// Rows of Q4_0, each of `groups` blocks of 18 bytes, as codes (rows, 4 * groups) and float16 scales (rows, groups) of the format.
// d * (q - 8) becomes -d * (15 - q - 7). order: which row of `blocks` each output row is; null: as they are.
void q4_0_codes(const uint8_t* blocks, const int64_t* order, size_t rows, size_t groups, uint32_t* codes, uint16_t* scales);

// A type that `values` dequantizes: float32 products and sums in the order of the gguf package, bit for bit.
struct GgmlType {
  const char* name;
  size_t block_values, block_bytes;
  void (*values)(const uint8_t* blocks, size_t count, float* out);  // out: (count * block_values)
};

// The type of that name ("Q6_K"); null for one that has no kernel here.
const GgmlType* ggml_type_named(const char* name);
}  // namespace kq
