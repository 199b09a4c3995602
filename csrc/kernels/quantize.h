// Round-to-nearest group quantization and dtype casts, one table per instruction set, all bit-identical.
//
// Source: MLC group quantization on CPU (docs/format.md, docs/modes.md); the plain twin is src/kumquant/quant/reference.py.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

namespace kq {

// Code widths that have kernels, each with its group: 4 and 8 bits in groups of 32, 3 bits in groups of 40.
constexpr int group_of(int bits) { return bits == 3 ? 40 : bits == 4 || bits == 8 ? 32 : 0; }
constexpr int words_of(int bits) { return group_of(bits) / (32 / bits); }  // 32-bit words of a group

struct QuantizeKernels {
  // Casts each row of source (rows, width) to the model dtype and quantizes it in groups along the width; the last group is
  // cut short where they do not divide the width. Memory is row-major without padding. bits: 3, 4 or 8.
  // unrounded_divisor: bfloat16 only, divide by the scale as it was before it was rounded (layout "KN").
  // codes: (rows, words_of(bits) * groups), 32 / bits codes a word, the first in the low bits; codes behind the width are 0.
  // scales: (rows, groups) of the model dtype.
  void (*quantize_rows)(const void* source, Number source_number, Number model, int bits, bool unrounded_divisor, size_t rows,
                        size_t width, uint32_t* codes, void* scales);
  // Casts n values to the model dtype: nearest, ties to even, overflow to infinity.
  void (*cast_values)(const void* source, Number source_number, Number model, size_t n, void* out);
};

// The kernels of an instruction set by its name in cpu/isa.h; null when this build or machine lacks it.
const QuantizeKernels* quantize_kernels_named(const char* name);
}  // namespace kq
