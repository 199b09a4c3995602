// Round-to-nearest group quantization and dtype casts, one table per instruction set, all bit-identical.
//
// Source: MLC group quantization on CPU, layout "NK", 4 bits, groups of 32 (docs/format.md); the plain twin is
// src/kumquant/quant/reference.py.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

namespace kq {

struct QuantizeKernels {
  // Casts each row of source (rows, width) to the model dtype and quantizes it in groups of 32 along the width; the
  // last group is cut short where 32 does not divide the width. Memory is row-major without padding.
  // codes: (rows, 4 * groups), eight 4-bit codes a word, the first in the low bits; codes behind the width are 0.
  // scales: (rows, groups) of the model dtype.
  void (*quantize_rows)(const void* source, Number source_number, Number model, size_t rows, size_t width, uint32_t* codes,
                        void* scales);
  // Casts n values to the model dtype: nearest, ties to even, overflow to infinity.
  void (*cast_values)(const void* source, Number source_number, Number model, size_t n, void* out);
};

// The kernels of an instruction set by its name in cpu/isa.h; null when this build lacks it.
const QuantizeKernels* quantize_kernels_named(const char* name);
}  // namespace kq
