#include "convert/transpose.h"

#include <stdint.h>
#include <string.h>

#include <algorithm>

namespace kq {
namespace {

constexpr size_t kTileBytes = 64;  // a cache line of each row, so that none is fetched twice; nothing need be aligned

template <typename T>
void transpose(const uint8_t* source, size_t rows, size_t columns, size_t begin, size_t end, uint8_t* out) {
  constexpr size_t kTile = kTileBytes / sizeof(T);
  for (size_t row = 0; row < rows; row += kTile) {
    const size_t height = std::min(kTile, rows - row);
    for (size_t column = begin; column < end; column += kTile) {
      const size_t width = std::min(kTile, end - column);
      T tile[kTile][kTile];
      for (size_t i = 0; i < height; i++)
        for (size_t j = 0; j < width; j++) memcpy(&tile[j][i], source + ((row + i) * columns + column + j) * sizeof(T), sizeof(T));
      for (size_t j = 0; j < width; j++) memcpy(out + ((column + j - begin) * rows + row) * sizeof(T), tile[j], height * sizeof(T));
    }
  }
}
}  // namespace

void transpose_columns(const void* source, size_t rows, size_t columns, size_t begin, size_t end, size_t itemsize, void* out) {
  if (itemsize == 2) return transpose<uint16_t>((const uint8_t*)source, rows, columns, begin, end, (uint8_t*)out);
  transpose<uint32_t>((const uint8_t*)source, rows, columns, begin, end, (uint8_t*)out);
}
}  // namespace kq
