// Columns of a matrix as rows, for sources that store (in, out).
#pragma once
#include <stddef.h>

namespace kq {
// source: (rows, columns) values of itemsize 2 or 4 bytes. out: (end - begin, rows), its row i being column begin + i.
void transpose_columns(const void* source, size_t rows, size_t columns, size_t begin, size_t end, size_t itemsize, void* out);
}  // namespace kq
